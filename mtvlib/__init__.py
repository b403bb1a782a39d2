"""Metabolic tumour volume of head and neck cancer in FDG PET/CT: the library behind the study's notebooks."""

__version__ = "0.1.0"
