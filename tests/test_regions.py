import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_builder import FRAME_UID, contour, headers, save, series, structure_set
from pydicom.sr.codedict import codes as concepts

from mtvlib import regions
from mtvlib.errors import InputError, Refusal
from mtvlib.regions import Category, label_map, read_names, region_mask, region_objects_summary
from mtvlib.volume import Grid, read_labels, same_grid, to_array

OBLIQUE = tuple(sitk.Euler3DTransform((0, 0, 0), 0.1, -0.2, 0.4).GetMatrix())
GRID = Grid((40, 40, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
NAMES = read_names(None)


def box(low, high, step=1.0):
    """Contours of a cuboid that holds the voxels from `low` up to `high` (exclusive) of a 1 mm grid."""
    (x0, y0, z0), (x1, y1, z1) = np.array(low) - 0.5, np.array(high) - 0.5
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    return [np.column_stack([corners, np.full(4, z)]) for z in np.arange(z0 + 0.5, z1, step)]


def lifted(contours, z):
    return [np.add(points, (0, 0, z)) for points in contours]


def filled(low, high, size=GRID.size):
    mask = np.zeros(size, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


# --- names

EXPECTED = {
    Category.PRIMARY: [
        *("GTV", "gtv  PRIMAIRE", "GTV1", "GTV 1 ", "GTVt", "GTV T", "GTVp", "GTV_67.5gy", "GTV_675GY", "GTV 67.5 Gy"),
        *("GTV_T_67.5gy", "GTV primary_70GY", "GTV tumeur", "GTV_Primary", "GTVp G", "GTV T irm", "GTV1 reperage"),
        *("GTV-1", "GTVP", "GTV-P", "GTV_P", "GTVp_YK", "GTVp2", "GTV_Mass_PET", "GTV_Mass_CT", "MTV primary 12"),
    ],
    Category.NODES: [
        *("GTV GG", "GTV ggs", "GTV-gg1", "GTVn", "GTV n", "GTV N", "GTVn1", "GTV_N1", "GTV_N12", "GTNn2", "GTV-2"),
        *("GTV nodes", "GTV Lymph Nodes", "GTV adp", "gtv ganglions", "GTVn D", "MTV node 3", "Lymph node metastases"),
    ],
    Category.AMBIGUOUS: [
        *("GTV t et N", "GTV et GG", "GTV T+N", "GTVp + GTVn", "GTV tn", "GTV p n", "GTV t gg", "GTV total", "GTV2"),
        *("GTV_3", "GTV-3", "tumor", "Lesion 2", "MTV"),
    ],
    Category.IGNORED: [
        *("CTV", "PTV 70", "GTV_CTV", "PTV GTVn", "body", "External", "Parotid_L", "left parotid gland", "Parotide D"),
        *(
            "Spinal Cord",
            "moelle",
            "BrainStem",
            "Tronc cerebral",
            "Mandible",
            "larynx",
            "Lens L",
            "Lung_R",
            "Cerebellum",
        ),
        *("aortic arch", "liver", "Glnd_Submand_R", "Cavity_Oral ring PTV", "GTV_Edema"),
    ],
    Category.UNMATCHED: ["", "blob", "GTVx", "GTV neck level", "xGTV", "GTV nouveau"],
}


@pytest.mark.parametrize(("category", "name"), [(key, name) for key, names in EXPECTED.items() for name in names])
def test_names_of_the_public_data_sets(category, name):
    assert NAMES.classify(name) is category


def test_codes_decide_where_the_name_says_nothing():
    primary, nodes, old = ("SCT:86049000",), ("SCT:14799000",), ("SRT:M-80006",)
    assert NAMES.classify("Reader 1", codes=primary) is Category.PRIMARY
    assert NAMES.classify("Reader 1", codes=old) is Category.NODES
    assert NAMES.classify("Lesion 1", codes=nodes) is Category.NODES  # the name alone would be ambiguous
    assert NAMES.classify("GTVp", codes=("SCT:108369006",)) is Category.PRIMARY  # "Neoplasm" says no more
    assert NAMES.classify("GTVp", codes=nodes) is Category.AMBIGUOUS
    assert NAMES.classify("Reader 1", codes=("SCT:108369006",)) is Category.AMBIGUOUS
    assert NAMES.classify("Reader 1", codes=("SCT:1",)) is Category.UNMATCHED


def test_a_table_of_ones_own_extends_or_replaces_the_defaults(tmp_path):
    path = tmp_path / "names.yml"
    path.write_text(
        "primary: ['blob']\nnodes: ['gtv']\nignored: ['gtvn']\norgans: [spleen]\ncodes: {nodes: ['99X:1']}\n"
    )
    names = read_names(path)
    assert names.classify("Blob") is Category.PRIMARY
    assert names.classify("GTV") is Category.NODES  # its own word outweighs the default
    assert names.classify("GTVn") is Category.IGNORED
    assert names.classify("left spleen 2") is Category.IGNORED
    assert names.classify("GTVp") is Category.PRIMARY
    assert names.classify("x", codes=["99X:1"]) is Category.NODES
    path.write_text("extend: false\nprimary: ['blob']\n")
    assert read_names(path).classify("GTVp") is Category.UNMATCHED


BAD_TABLES = {
    "unknown key": ("primaries: [a]", "unknown key 'primaries'"),
    "bad regular expression": ("nodes: ['gtv(']", r"nodes: 'gtv\(' is not a regular expression"),
    "no list": ("nodes: gtv", "nodes must be a list of texts"),
    "numbers": ("nodes: [1]", "nodes must be a list of texts"),
    "extend": ("extend: 'no'", "extend must be true or false"),
    "codes": ("codes: [a]", "codes must have the keys"),
    "unknown code key": ("codes: {tumour: ['SCT:1']}", "unknown key 'codes.tumour'"),
    "code without scheme": ("codes: {nodes: ['14799000']}", "'14799000' is not scheme:value"),
    "no table": ("- a", "must hold lists of names"),
    "no YAML": ("a: [", "is not YAML"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_refused_with_its_file(tmp_path, case):
    text, problem = BAD_TABLES[case]
    path = tmp_path / "names.yml"
    path.write_text(text)
    with pytest.raises(InputError, match=problem) as error:
        read_names(path)
    assert error.value.file == path


def test_all_mistakes_of_a_table_are_listed_and_a_missing_one_is_told(tmp_path):
    path = tmp_path / "names.yml"
    path.write_text("nods: [a]\nprimary: ['[']\n")
    with pytest.raises(InputError, match=r"'nods'.*'\['"):
        read_names(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_names(tmp_path / "absent.yml")


# --- RTSTRUCT


def test_summary_of_a_structure_set():
    dataset = structure_set({"GTVp": [], "Body": []}, series_uids=["1.2.3"])
    code = pydicom.Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "M-80003", "SNM3"
    observation = pydicom.Dataset()
    observation.ReferencedROINumber, observation.RTROIIdentificationCodeSequence = 2, [code]
    dataset.RTROIObservationsSequence = [observation]
    assert region_objects_summary(dataset) == [
        regions.Region(1, "GTVp", (), FRAME_UID, ("1.2.3",)),
        regions.Region(2, "Body", ("SRT:M-80003",), FRAME_UID, ("1.2.3",)),
    ]
    dataset.SOPClassUID = pydicom.uid.CTImageStorage
    with pytest.raises(Refusal) as error:
        region_objects_summary(dataset)
    assert error.value.code == "not_a_region_object"


def test_reference_to_the_frame_or_to_the_series():
    dataset = structure_set({"GTVp": []}, series_uids=["1.2.3"])
    regions.check_reference(dataset, FRAME_UID, [])
    regions.check_reference(dataset, "1.9", ["1.2.3"])
    with pytest.raises(Refusal, match=f"frame of reference than the image's, 1.9.*{FRAME_UID}") as error:
        regions.check_reference(dataset, "1.9", ["1.2.4"])
    assert (error.value.code, error.value.patient) == ("other_frame_of_reference", "P1")


def test_label_map_of_a_structure_set():
    rois = {
        "GTVp": box((5, 5, 5), (15, 15, 10)),
        "GTV T": box((20, 5, 5), (25, 10, 10)),
        "GTVn1": box((12, 12, 5), (18, 18, 10)),
        "Parotid_L": box((0, 0, 0), (40, 40, 20)),
        "GTV t et N": box((0, 0, 0), (40, 40, 20)),
        "blob": box((0, 0, 0), (40, 40, 20)),
    }
    found = label_map(structure_set(rois), GRID, NAMES)
    expected = np.zeros(GRID.size, np.uint8)
    expected[filled((5, 5, 5), (15, 15, 10)) | filled((20, 5, 5), (25, 10, 10))] = 1
    expected[filled((12, 12, 5), (18, 18, 10))] = 2
    assert np.array_equal(to_array(found.image), expected)
    assert same_grid(found.image, GRID)
    assert found.image.GetPixelID() == sitk.sitkUInt8
    assert found.categories == {
        "GTVp": Category.PRIMARY,
        "GTV T": Category.PRIMARY,
        "GTVn1": Category.NODES,
        "Parotid_L": Category.IGNORED,
        "GTV t et N": Category.AMBIGUOUS,
        "blob": Category.UNMATCHED,
    }
    assert found.overlap_ml == pytest.approx(3 * 3 * 5 / 1000)
    assert found.outside_ml == 0
    assert found.nodes_stated
    assert found.notes == ["not used, ambiguous: GTV t et N", "not used, unmatched: blob"]


def test_no_word_about_nodes_is_not_no_nodes():
    assert not label_map(structure_set({"GTV": box((5, 5, 5), (9, 9, 9))}), GRID, NAMES).nodes_stated
    found = label_map(structure_set({"GTV": box((5, 5, 5), (9, 9, 9)), "GTVn": []}), GRID, NAMES)
    assert not found.nodes_stated  # an ROI without contours says nothing either
    assert found.notes == ["GTVn: has no closed contour"]


def test_ct_contours_on_a_coarser_and_on_a_finer_grid_keep_their_volume():
    # A cuboid of 20 x 20 x 12 mm drawn every 3 mm.
    contours = box((10, 10, 4), (30, 30, 16), step=3.0)
    dataset = structure_set({"GTV": lifted(contours, 1)})  # planes in the middle of their slabs
    for spacing, size in (((2.0, 2.0, 2.0), (20, 20, 10)), ((0.5, 0.5, 0.5), (80, 80, 40))):
        grid = Grid(size, spacing, tuple((np.array(spacing) - 1) / 2))  # the same field as GRID
        mask = region_mask(dataset, 1, grid).mask
        assert mask.sum() * grid.voxel_ml == pytest.approx(4.8)


def test_a_single_plane_is_as_thick_as_the_other_rois_planes():
    one = lifted(box((5, 5, 0), (10, 10, 1)), 4)
    far = box((20, 20, 0), (30, 30, 20), step=4.0)
    alone, among = structure_set({"GTVn": one}), structure_set({"GTVn": one, "Body": far})
    assert region_mask(alone, 1, GRID).mask.any(axis=(0, 1)).sum() == 1
    assert region_mask(among, 1, GRID).mask.any(axis=(0, 1)).sum() == 4
    among.ROIContourSequence[1].ContourSequence[0].ContourData = ["1", "2"]  # damage to an organ does no harm
    assert region_mask(among, 1, GRID).mask.any()


def test_two_planes_far_apart_are_two_lesions_and_three_near_ones_are_one():
    one = box((5, 5, 0), (10, 10, 1))
    far = lifted(one, 2) + lifted(one, 14)
    mask = region_mask(structure_set({"GTVn": far}), 1, GRID)
    assert np.flatnonzero(mask.mask.any(axis=(0, 1))).tolist() == [2, 14]
    assert "gaps of up to 12 mm" in mask.notes[0]
    near = lifted(one, 4) + lifted(one, 7) + lifted(one, 10)
    mask = region_mask(structure_set({"GTVn": near}), 1, GRID)
    assert np.flatnonzero(mask.mask.any(axis=(0, 1))).tolist() == list(range(3, 12))


def test_points_open_and_short_contours_are_left_out_with_a_note():
    dataset = structure_set({"GTV": box((5, 5, 5), (9, 9, 9))})
    items = dataset.ROIContourSequence[0].ContourSequence
    items += [contour(np.ones((1, 3)), "POINT"), contour(np.ones((9, 3)), "OPEN_PLANAR"), contour(np.ones((2, 3)))]
    found = label_map(dataset, GRID, NAMES)
    assert to_array(found.image).sum() == 64
    assert found.notes == [
        "GTV: 2 points and open contours left out",
        "GTV: 1 contours of fewer than three points left out",
    ]


@pytest.mark.parametrize("direction", [GRID.direction, OBLIQUE])
def test_what_lies_outside_of_the_grid_is_measured(direction):
    dataset = structure_set({"GTV": box((-10, 5, 5), (10, 9, 9))})
    found = label_map(dataset, Grid(GRID.size, GRID.spacing_mm, (0.0, 0.0, 0.0), direction), NAMES)
    inside = to_array(found.image).sum() / 1000
    assert inside + found.outside_ml == pytest.approx(0.32, abs=0.006)
    assert found.outside_ml > 0.05


def test_a_file_and_an_object_in_memory_give_the_same(tmp_path):
    # Read from a file, the numbers are still bytes; pydicom has looked at those of the other.
    dataset = structure_set({"GTV": box((5, 5, 5), (15, 15, 10))})
    read = pydicom.dcmread(save(dataset, tmp_path / "a.dcm"))
    assert isinstance(read.ROIContourSequence[0].ContourSequence[0].get_item("ContourData").value, bytes)
    masks = [region_mask(one, 1, GRID).mask for one in (dataset, read)]
    assert np.array_equal(*masks)
    assert masks[0].sum() == 500


REFUSED = {
    "no_region_matched": (lambda: structure_set({"blob": [], "GTV t et N": []}), r"blob \(unmatched\).*--roi-names"),
    "empty_region": (lambda: structure_set({"GTV": box((100, 5, 5), (105, 9, 9))}), "0.08 ml of them lie outside.*GTV"),
    "broken_contours": (
        lambda: structure_set({"GTV": [np.array([[0, 0, 0], [9, 0, 0], [0, 9, 9], [0, 9, 0.0]])]}),
        "GTV",
    ),
}


@pytest.mark.parametrize("code", REFUSED)
def test_what_cannot_be_used_is_refused_with_a_code(code):
    build, message = REFUSED[code]
    with pytest.raises(Refusal, match=message) as error:
        label_map(build(), GRID, NAMES)
    assert (error.value.code, error.value.patient) == (code, "P1")
    assert error.value.remedy


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
@pytest.mark.parametrize("data", [["1", "2"], ["1", "2", "nan"] * 3, ["1", "2", "inf"] * 3])
def test_contour_data_that_are_no_points_are_refused(data):
    dataset = structure_set({"GTV": box((5, 5, 5), (9, 9, 9))})
    dataset.ROIContourSequence[0].ContourSequence[0].ContourData = data
    with pytest.raises(Refusal, match="GTV: a contour is not a list of points") as error:
        label_map(dataset, GRID, NAMES)
    assert error.value.code == "broken_contours"


def test_regions_of_one_frame_of_reference_only():
    dataset = structure_set({"GTVp": box((5, 5, 5), (9, 9, 9)), "GTVn": box((15, 5, 5), (19, 9, 9))})
    dataset.StructureSetROISequence[1].ReferencedFrameOfReferenceUID = "1.9"
    with pytest.raises(Refusal, match="several frames") as error:
        label_map(dataset, GRID, NAMES)
    assert error.value.code == "other_frame_of_reference"
    found = label_map(dataset, GRID, NAMES, frame_uid="1.9")
    assert set(np.unique(to_array(found.image))) == {0, 2}
    assert found.notes == ["not used, other frame of reference: GTVp"]
    with pytest.raises(Refusal, match=r"no lesion lies in frame 1\.8"):
        label_map(dataset, GRID, NAMES, frame_uid="1.8")


# --- SEG

SEG_GRID = Grid((12, 10, 8), (4.0, 4.0, 3.0), (-20.0, -15.0, 100.0))
PRIMARY_CODE = hd.sr.CodedConcept("86049000", "SCT", "Neoplasm, Primary")


def segmentation(folder, arrays, kind="BINARY", grid=SEG_GRID, names=("A", "B"), **options):
    """SEG of arrays (x, y, z), the first a primary tumour, the second nodes."""
    source = headers(
        series(folder, size=grid.size, spacing_mm=grid.spacing_mm, origin=grid.origin_mm, direction=grid.direction)
    )
    segments = [
        hd.seg.SegmentDescription(
            place, name, concepts.SCT.MorphologicallyAbnormalStructure, code, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for place, (name, code) in enumerate(zip(names, (PRIMARY_CODE, concepts.SCT.NeoplasmSecondary), strict=True), 1)
    ][: len(arrays)]
    pixels = np.stack([array.T for array in arrays], axis=-1)
    made = hd.seg.Segmentation(
        source, pixels, kind, segments, hd.UID(), 9, hd.UID(), 1, "maker", "model", "1", "1", **options
    )
    return pydicom.dcmread(save(made, folder / "seg.dcm"))


def test_label_map_of_a_segmentation(tmp_path):
    primary, nodes = (filled(*corners, SEG_GRID.size) for corners in (((2, 2, 1), (6, 5, 4)), ((5, 4, 3), (9, 9, 6))))
    dataset = segmentation(tmp_path, [primary.astype(np.uint8), nodes.astype(np.uint8)])
    found = label_map(dataset, SEG_GRID, NAMES)
    assert np.array_equal(to_array(found.image), np.where(nodes, 2, primary))
    assert found.categories == {"A": Category.PRIMARY, "B": Category.NODES}
    assert found.overlap_ml == pytest.approx((primary & nodes).sum() * SEG_GRID.voxel_ml)
    assert found.nodes_stated
    (region, _) = region_objects_summary(dataset)
    assert (region.codes, region.frame_of_reference_uid) == (("SCT:86049000",), FRAME_UID)
    assert len(region.referenced_series_uids) == 1
    regions.check_reference(dataset, FRAME_UID, [])


@pytest.mark.parametrize("meaning", ["PROBABILITY", "OCCUPANCY"])
def test_fractional_segments_count_from_one_half_on(tmp_path, meaning):
    share = np.zeros(SEG_GRID.size)
    share[2, 3, 2:6] = 0.25, 0.49, 0.5, 1.0
    dataset = segmentation(tmp_path, [share], "FRACTIONAL", fractional_type=meaning, max_fractional_value=200)
    assert np.argwhere(region_mask(dataset, 1, SEG_GRID).mask).tolist() == [[2, 3, 4], [2, 3, 5]]


def test_segments_of_a_label_map_object(tmp_path):
    primary, nodes = filled((2, 2, 1), (6, 5, 4), SEG_GRID.size), filled((6, 4, 3), (9, 9, 6), SEG_GRID.size)
    dataset = segmentation(tmp_path, [primary.astype(np.uint8), nodes.astype(np.uint8)], "LABELMAP")
    assert np.array_equal(to_array(label_map(dataset, SEG_GRID, NAMES).image), primary + 2 * nodes)


@pytest.mark.parametrize("stated", [True, False])
@pytest.mark.parametrize("slices", [[2, 3, 4], [2, 4], [1, 3, 6], [3], [0, 7]])
def test_empty_frames_may_be_absent(tmp_path, slices, stated):
    mask = np.zeros(SEG_GRID.size, np.uint8)
    mask[3:6, 4:8, slices] = 1
    dataset = segmentation(tmp_path, [mask])
    assert len(dataset.PerFrameFunctionalGroupsSequence) == len(slices)
    if not stated:
        del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices
    assert np.array_equal(region_mask(dataset, 1, SEG_GRID).mask, mask == 1)


@pytest.mark.parametrize("direction", [(0.0, 0, 1, 1, 0, 0, 0, -1, 0), (-1.0, 0, 0, 0, 1, 0, 0, 0, 1), OBLIQUE])
def test_segmentation_of_any_orientation(tmp_path, direction):
    grid = Grid(SEG_GRID.size, SEG_GRID.spacing_mm, SEG_GRID.origin_mm, direction)
    mask = filled((2, 2, 1), (6, 5, 4), grid.size)
    mask[8, 8, 5] = True
    dataset = segmentation(tmp_path, [mask.astype(np.uint8)], grid=grid)
    assert np.array_equal(region_mask(dataset, 1, grid).mask, mask)


def test_segmentation_on_another_grid_keeps_place_and_volume(tmp_path):
    fine = Grid((50, 50, 30), (1.0, 1.0, 2.0), (-10.0, -10.0, 50.0))
    centres = fine.to_mm(np.indices(fine.size).reshape(3, -1).T)
    mask = (np.linalg.norm((centres - (14, 17, 80)) / (1, 1, 1.3), axis=1) < 14).reshape(fine.size)
    dataset = segmentation(tmp_path, [mask.astype(np.uint8)], grid=fine)
    other = Grid((30, 30, 30), (2.5, 2.5, 2.5), (-25.0, -10.0, 45.0), OBLIQUE)
    found = label_map(dataset, other, NAMES)
    array = to_array(found.image)
    assert array.sum() * other.voxel_ml == pytest.approx(mask.sum() * fine.voxel_ml, rel=0.02)
    assert other.to_mm(np.argwhere(array)).mean(axis=0) == pytest.approx([14, 17, 80], abs=0.3)
    assert found.outside_ml == 0
    half = Grid((24, 50, 30), (1.0, 1.0, 2.0), (-10.0, -10.0, 50.0))
    found = label_map(dataset, half, NAMES)
    assert np.array_equal(to_array(found.image), mask[:24])
    assert found.outside_ml == pytest.approx(mask[24:].sum() * fine.voxel_ml)
    far = Grid((24, 50, 30), (1.0, 1.0, 2.0), (500.0, -10.0, 50.0))
    with pytest.raises(Refusal) as error:
        label_map(dataset, far, NAMES)
    assert error.value.code == "empty_region"


def test_empty_segment_says_nothing_about_nodes(tmp_path):
    mask = filled((2, 2, 1), (6, 5, 4), SEG_GRID.size).astype(np.uint8)
    dataset = segmentation(tmp_path, [mask, mask * 0], omit_empty_frames=False)
    found = label_map(dataset, SEG_GRID, NAMES)
    assert not found.nodes_stated
    assert found.notes == ["B: the segment is empty"]


def test_uneven_turned_and_damaged_frames_are_refused(tmp_path):
    mask = filled((2, 2, 1), (6, 5, 6), SEG_GRID.size).astype(np.uint8)

    def refused(change):
        dataset = segmentation(tmp_path, [mask])
        change(dataset)
        with pytest.raises(Refusal) as error:
            label_map(dataset, SEG_GRID, NAMES)
        assert error.value.code == "broken_segments"
        return error.value.problem

    def shift(axis):
        def change(dataset):
            position = dataset.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence[0].ImagePositionPatient
            position[axis] = position[axis] + 1.0

        return change

    def damage(dataset):
        dataset.PixelData = dataset.PixelData[:4]

    assert "evenly spaced" in refused(shift(2))
    assert "one above the other" in refused(shift(0))
    assert "cannot be read" in refused(damage)


# --- real data


@pytest.mark.parametrize(("modality", "name"), [("PET", "GTV_Mass_PET"), ("CT", "GTV_Mass_CT")])
def test_real_contours_equal_the_masks_that_others_made_of_them(shared, modality, name):
    patient = "STS_002"
    folder = shared / "data/sts/dicom" / patient / modality
    reference = read_labels(shared / f"data/sts/nifti/{patient}/{modality}_mask.nii.gz")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder / "image")))
    found = label_map(pydicom.dcmread(folder / "mask/RS.dcm"), Grid.of(reader.Execute()), NAMES)
    assert np.array_equal(to_array(found.image), to_array(reference))
    assert found.categories == {name: Category.PRIMARY}
    assert (found.outside_ml, found.notes) == (0, [])
