"""The normal patient of the phantom (body, CT numbers, physiological FDG uptake) and where disease may sit in it.

Everything is drawn in one *canonical* frame (LPS, mm: x to the left, y backwards, z upwards; the origin lies in front
of the C3 vertebra in the midline, the chin at z = 0, the vertex at z = 225) and seen through a smooth random warp
(size, sex, tilt and turn of the head, local deformation), so that no two patients have the same anatomy while lesions
keep their place in it. One painter draws one kind of shape, an ellipsoid swept along a segment, from one table; what
stands later in the table covers what stands earlier.

Sources. Sizes and positions: adult anatomy as in textbooks, to the nearest millimetres (the exact numbers are
assumptions). CT numbers: air -1000, fat about -100, muscle 50-60, bone 300-1500 HU. Uptake (SUV of body weight, about
60-90 min after injection): where the normal head and neck takes up FDG and how strongly (brain 6-14, tonsils, salivary
glands, vocal cords, muscle, brown fat, marrow, cord) follows what is usually described; medians and spreads are
assumptions within such ranges. Brown fat takes up FDG in one patient of twenty (Cypess et al. 2009, doi
10.1056/NEJMoa0810780: 106 of 1972).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

SPACING_MM = 2.5
LOW_MM = np.array([-240.0, -165.0, -165.0])
SHAPE = (192, 132, 168)
COARSE = 4  # smooth fields are computed on every fourth voxel, then interpolated
VERTEX_MM = 225.0
NECK_PIVOT_MM = np.array([0.0, 15.0, -70.0])  # C7: above it the head tilts, below it nothing moves

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Structure:
    """An ellipsoid at `at` (swept to `to`) with semi-axes `radii`, mm; `hu` or `suv` None leaves what lies below."""

    name: str
    at: Point
    radii: Point
    hu: float | None
    suv: float | None
    to: Point | None = None
    paired: bool = False  # at -x as well
    spread: float = 0.15  # log sd of uptake between patients
    asymmetry: float = 0.0  # log sd of uptake between sides
    chance: float = 1.0  # share of patients that show it
    enhancement: float = 0.0  # HU added by contrast medium


def _s(name: str, at: Point, radii: Point, hu: float | None, suv: float | None, **more: object) -> Structure:
    return Structure(name, at, radii, hu, suv, **more)  # type: ignore[arg-type]


# z (mm), half width, front y, back y of the body, mm
OUTLINE_MM = np.array(
    [
        (-205, 240, -105, 118),
        (-150, 228, -90, 112),
        (-125, 195, -74, 104),
        (-110, 150, -62, 95),
        (-95, 102, -54, 86),
        (-80, 74, -50, 78),
        (-60, 62, -51, 71),
        (-40, 58, -54, 67),
        (-18, 58, -58, 67),
        (-8, 59, -64, 68),
        (2, 62, -78, 70),
        (20, 65, -86, 73),
        (40, 67, -88, 79),
        (60, 70, -90, 88),
        (85, 75, -90, 102),
        (120, 78, -90, 109),
        (150, 77, -86, 109),
        (180, 70, -74, 98),
        (200, 57, -52, 78),
        (215, 38, -24, 52),
        (223, 14, 2, 26),
        (226, 1, 13, 15),
    ],
    dtype=float,
)


def _spine() -> list[Structure]:
    """Vertebrae C2 to T5: body, arch with spinous process; 18 mm apart in the neck, 21 mm below."""
    heights = [16.0 - 18 * i for i in range(6)] + [-93.0 - 21 * i for i in range(5)]
    parts: list[Structure] = [_s("cord canal", (0, 29, 75), (8, 7, 6), 30, 1.0, to=(0, 29, -200))]
    for z in heights:
        parts += [
            _s("vertebra", (0, 11, z), (13, 10, 7.5), 320, 1.7, spread=0.2),
            _s("lamina", (15, 24, z), (5, 9, 5), 450, 1.2, paired=True),
            _s("spinous process", (0, 40, z - 3), (3.5, 5, 5), 450, 1.1, to=(0, 54, z - 6)),
        ]
    return parts


def _teeth() -> list[Structure]:
    angles = np.linspace(-1.25, 1.25, 11)
    return [
        _s("tooth", (31 * np.sin(a), -38 - 38 * np.cos(a), z), (4, 4, 7), 1500, 0.8)
        for a in angles
        for z in (30.0, 45.0)
    ]


FAT = [
    _s("carotid space fat", (30, 6, 62), (13, 13, 8), -95, 0.35, to=(30, -6, -104), paired=True),
    _s("posterior triangle fat", (50, 30, 15), (11, 13, 10), -100, 0.3, to=(56, 24, -98), paired=True),
    _s("parapharyngeal fat", (27, -11, 68), (6, 10, 6), -95, 0.4, to=(26, -14, 34), paired=True),
    _s("buccal fat", (46, -46, 48), (9, 13, 16), -100, 0.3, paired=True),
    _s("submental fat", (0, -60, -3), (26, 12, 7), -100, 0.3),
    _s("submandibular fat", (28, -44, -2), (15, 17, 10), -100, 0.35, paired=True),
    _s("supraclavicular fat", (60, 2, -102), (26, 20, 11), -100, 0.3, paired=True),
    _s("nuchal fat", (0, 66, 10), (16, 7, 10), -100, 0.3, to=(0, 72, -90)),
]

MUSCLES = [
    _s("sternocleidomastoid", (54, 28, 62), (8, 10, 10), 58, 0.9, to=(18, -42, -112), paired=True, asymmetry=0.2),
    _s("trapezius", (22, 62, 40), (18, 9, 12), 58, 0.85, to=(110, 62, -112), paired=True, asymmetry=0.1),
    _s("paraspinal muscle", (22, 48, 60), (17, 14, 12), 58, 0.85, to=(24, 58, -190), paired=True),
    _s("longus colli", (9, -2, 55), (7, 4, 8), 58, 1.0, to=(9, -2, -95), paired=True),
    _s("scalene", (32, 14, 10), (8, 10, 10), 58, 0.9, to=(42, 8, -100), paired=True, asymmetry=0.15),
    _s("masseter", (55, -20, 45), (8, 16, 26), 60, 1.0, paired=True, spread=0.25, asymmetry=0.25),
    _s("pterygoid", (38, -14, 48), (9, 13, 20), 60, 1.1, paired=True, spread=0.25, asymmetry=0.25),
    _s("temporalis", (66, -22, 105), (7, 28, 30), 58, 0.9, paired=True, spread=0.2),
    _s("pectoral muscle", (80, -66, -160), (65, 14, 40), 55, 0.8, paired=True),
    _s("deltoid", (198, 5, -150), (26, 40, 40), 55, 0.8, paired=True),
    _s("tongue", (0, -46, 30), (23, 30, 20), 60, 1.5, spread=0.25, enhancement=15),
    _s("mylohyoid", (0, -48, 8), (22, 24, 6), 60, 1.7, spread=0.25),
    _s("strap muscles", (10, -46, -20), (8, 4, 8), 58, 1.0, to=(8, -46, -95), paired=True),
    _s("pharyngeal wall", (0, -12, 70), (20, 11, 10), 55, 1.7, to=(0, -20, -50), spread=0.2, enhancement=20),
]

GLANDS = [
    _s("parotid", (53, 8, 42), (11, 18, 24), 5, 1.9, paired=True, spread=0.25, asymmetry=0.08, enhancement=25),
    _s(
        "submandibular gland",
        (30, -34, 4),
        (8, 14, 11),
        40,
        2.2,
        paired=True,
        spread=0.25,
        asymmetry=0.08,
        enhancement=40,
    ),
    _s("sublingual gland", (13, -56, 17), (5, 13, 6), 40, 2.8, paired=True, spread=0.3, asymmetry=0.1, enhancement=30),
    _s("palatine tonsil", (16, -17, 26), (6, 8, 12), 55, 4.0, paired=True, spread=0.3, asymmetry=0.15, enhancement=30),
    _s("lingual tonsil", (8, -26, 8), (9, 6, 9), 55, 3.6, paired=True, spread=0.35, asymmetry=0.15, enhancement=25),
    _s("adenoid", (0, -10, 70), (13, 5, 9), 55, 2.8, spread=0.35, enhancement=25),
    _s("soft palate", (0, -26, 48), (15, 12, 4), 50, 2.6, spread=0.3, enhancement=15),
    _s("thyroid", (20, -30, -68), (8, 10, 20), 100, 1.5, paired=True, spread=0.3, enhancement=60),
    _s("hot thyroid", (20, -30, -68), (8, 10, 20), None, 4.0, paired=True, spread=0.3, chance=0.08),
    _s("thyroid isthmus", (0, -42, -74), (14, 4, 7), 100, 1.5, enhancement=60),
]

BONES = [
    _s("petrous bone", (45, 25, 85), (22, 14, 14), 900, 0.9, paired=True),
    _s("clivus", (0, 2, 78), (12, 9, 14), 500, 1.2),
    _s("maxilla", (0, -62, 58), (30, 26, 10), 350, 1.0),
    _s("hard palate", (0, -55, 53), (22, 26, 3), 500, 0.9),
    _s("face bones", (38, -58, 80), (14, 18, 18), 300, 0.9, paired=True),
    _s("zygoma", (55, -62, 82), (5, 6, 6), 600, 0.8, to=(66, -10, 84), paired=True),
    _s("mandible body", (6, -78, 14), (6, 6, 10), 700, 0.9, to=(46, -20, 20), paired=True),
    _s("mandible ramus", (47, -16, 22), (5, 11, 10), 700, 0.9, to=(52, 2, 76), paired=True),
    _s("hyoid", (0, -46, -9), (3, 3, 3), 350, 0.9, to=(19, -26, -6), paired=True),
    _s("clavicle", (14, -58, -122), (7, 7, 7), 500, 1.0, to=(150, -8, -112), paired=True),
    _s("scapula", (75, 78, -185), (26, 5, 10), 350, 0.9, to=(150, 45, -118), paired=True),
    _s("humeral head", (180, 12, -138), (24, 24, 24), 350, 1.0, to=(205, 12, -200), paired=True),
    _s("manubrium", (0, -70, -150), (28, 7, 26), 250, 1.5, spread=0.2),
    _s("first rib", (20, 25, -104), (6, 6, 5), 450, 1.1, to=(70, -5, -126), paired=True),
    _s("rib", (70, -5, -126), (6, 6, 5), 450, 1.1, to=(34, -62, -146), paired=True),
    _s("second rib", (26, 34, -126), (6, 6, 5), 450, 1.1, to=(100, 20, -158), paired=True),
    _s("third rib", (30, 40, -148), (6, 6, 5), 450, 1.1, to=(118, 25, -190), paired=True),
]

LARYNX = [
    _s("thyroid cartilage", (2, -52, -26), (3, 3, 10), 180, 1.0, to=(20, -28, -28), paired=True),
    _s("paraglottic tissue", (0, -36, -30), (16, 13, 15), 35, 1.3),
    _s("cricoid", (0, -26, -50), (14, 11, 7), 220, 1.2),
    _s("epiglottis", (0, -28, -4), (11, 3, 10), 55, 1.8, spread=0.2),
    _s("arytenoid muscle", (7, -25, -37), (4, 4, 4), 55, 2.3, paired=True, spread=0.3, asymmetry=0.1),
    _s("oesophagus", (0, -10, -56), (9, 6, 6), 45, 1.7, to=(0, -10, -200), spread=0.2),
]

AIR = [
    _s("nasal cavity", (7, -62, 72), (5, 30, 18), -950, 0.3, paired=True),
    _s("turbinate", (8, -58, 66), (3, 22, 5), 40, 2.0, paired=True, spread=0.3, enhancement=40),
    _s("maxillary sinus", (29, -55, 76), (12, 16, 15), -980, 0.2, paired=True),
    _s("ethmoid", (6, -52, 100), (6, 22, 8), -600, 0.5, paired=True),
    _s("sphenoid sinus", (0, -18, 92), (11, 11, 8), -980, 0.2),
    _s("mastoid", (56, 36, 76), (9, 12, 14), -500, 0.3, paired=True),
    _s("ear canal", (56, 12, 84), (3, 3, 3), -980, 0.2, to=(82, 16, 84), paired=True),
    _s("nasopharynx", (0, -22, 66), (12, 8, 12), -990, 0.2),
    _s("oropharynx", (0, -13, 42), (11, 5, 6), -990, 0.2, to=(0, -15, 4)),
    _s("mouth", (0, -50, 45), (16, 18, 2.5), -600, 0.3, chance=0.4),
    _s("vallecula", (6, -27, 2), (5, 3, 4), -900, 0.3, paired=True),
    _s("laryngeal inlet", (0, -30, -8), (8, 7, 8), -990, 0.2, to=(0, -33, -28)),
    _s("pyriform sinus", (15, -23, -18), (3, 4, 9), -800, 0.3, paired=True, to=(13, -22, -30)),
    _s("glottis", (0, -36, -37), (3, 11, 4), -990, 0.2),
    _s("subglottis", (0, -33, -44), (7, 9, 4), -990, 0.2, to=(0, -31, -60)),
    _s("trachea", (0, -31, -60), (8.5, 8.5, 8), -990, 0.2, to=(0, -12, -200)),
    _s("vocal cord", (5, -37, -37), (3, 10, 3), 60, 2.0, paired=True, spread=0.3, asymmetry=0.1),
    _s("talking", (5, -37, -37), (3.5, 10, 4), None, 4.5, paired=True, spread=0.3, asymmetry=0.15, chance=0.2),
]

VESSELS = [
    _s("carotid", (24, -4, 75), (3.5, 3.5, 5), 45, 1.5, to=(22, -14, -110), paired=True, enhancement=170),
    _s("jugular vein", (31, 2, 75), (5.5, 5, 6), 45, 1.5, to=(29, -18, -112), paired=True, enhancement=130),
    _s("subclavian", (24, -22, -118), (6, 6, 6), 45, 1.5, to=(95, -5, -128), paired=True, enhancement=150),
    _s("great vessels", (0, -32, -150), (20, 16, 26), 45, 1.6, enhancement=120),
    _s("aortic arch", (14, -20, -185), (14, 28, 14), 45, 1.6, enhancement=150),
]

CRANIUM = [
    _s("skull", (0, 12, 146), (73, 94, 75), 1000, 1.2),
    _s("occiput", (0, 50, 98), (56, 40, 32), 1000, 1.2),
]

HEAD = [
    *CRANIUM,
    _s("skull base", (0, 0, 86), (46, 42, 6), 400, 1.0),
    _s("cerebrospinal fluid", (0, 13, 146), (68.5, 89, 70.5), 15, 2.5),
    _s("posterior fossa", (0, 50, 99), (51, 36, 28), 15, 2.0),
    _s("grey matter", (0, 13, 148), (66.5, 87, 66.5), 38, 10.0, spread=0.25),
    _s("white matter", (27, 14, 150), (24, 62, 40), 30, 5.0, paired=True, spread=0.25),
    _s("basal ganglia", (18, 0, 136), (10, 22, 14), 38, 11.0, paired=True, spread=0.25),
    _s("ventricle", (9, 18, 148), (5, 26, 8), 8, 2.0, paired=True),
    _s("falx", (0, 13, 165), (1.5, 80, 45), 30, 4.0),
    _s("cerebellum", (0, 50, 99), (48, 33, 25), 38, 8.0, spread=0.2),
    _s("brainstem", (0, 26, 112), (13, 12, 14), 32, 5.5, to=(0, 29, 80), spread=0.2),
    _s("cord", (0, 29, 78), (5, 4, 5), 35, 2.2, to=(0, 29, -200), spread=0.15),
    _s("frontal sinus", (10, -76, 128), (12, 5, 9), -900, 0.3, paired=True),
    _s("orbit", (31, -66, 108), (18, 24, 17), -90, 0.8, paired=True),
    _s("eye muscles", (31, -52, 108), (10, 12, 10), 40, 3.2, paired=True, spread=0.3),
    _s("eyeball", (31, -74, 108), (12, 12, 12), 15, 0.9, paired=True),
    _s("lacrimal gland", (43, -68, 116), (4, 5, 4), 40, 2.0, paired=True, spread=0.3),
]

TRUNK = [
    _s("lung", (68, 8, -205), (52, 62, 95), -830, 0.4, paired=True),
    _s("axillary fat", (150, -10, -185), (22, 30, 40), -100, 0.3, paired=True),
]

# Normal nodes: seen on CT, hardly on PET.
NORMAL_NODES = [
    _s("normal node", at, (3.5, 3, 5), 45, 1.3, paired=True, spread=0.25, asymmetry=0.2, chance=0.6, enhancement=20)
    for at in [
        (38, -4, 22),
        (45, 14, 26),
        (36, 4, 2),
        (34, -2, -18),
        (34, 4, -42),
        (31, -2, -64),
        (50, 26, -10),
        (52, 22, -50),
        (24, -50, -2),
        (36, -36, -6),
        (7, -64, -2),
        (60, 2, -98),
    ]
]

EXTRAS = [
    _s(
        "brown fat",
        (52, 12, -78),
        (16, 14, 8),
        None,
        5.0,
        to=(85, 18, -104),
        paired=True,
        spread=0.4,
        asymmetry=0.15,
        chance=0.03,
    ),
    _s(
        "brown fat of the neck",
        (40, 24, -30),
        (7, 8, 14),
        None,
        3.5,
        paired=True,
        spread=0.4,
        asymmetry=0.2,
        chance=0.02,
    ),
    _s("dental inflammation", (33, -52, 30), (6, 7, 6), None, 3.8, spread=0.3, chance=0.12),
    _s("dental inflammation", (-30, -56, 44), (6, 7, 6), None, 3.4, spread=0.3, chance=0.1),
    _s("sinusitis", (29, -55, 66), (11, 14, 6), 30, 2.6, spread=0.3, chance=0.12),
    _s("busy tongue", (0, -58, 24), (16, 14, 10), None, 3.2, spread=0.25, chance=0.1),
    _s("reactive lingual tonsil", (0, -25, 8), (15, 5, 8), None, 5.5, spread=0.2, chance=0.08),
    _s("cricopharyngeal muscle", (0, -16, -50), (10, 4, 5), None, 3.2, spread=0.25, chance=0.15),
    _s("facet joint", (17, 22, -20), (5, 5, 5), None, 3.4, spread=0.25, chance=0.1),
    _s("facet joint", (-17, 22, 4), (5, 5, 5), None, 3.4, spread=0.25, chance=0.08),
    _s("tense muscle", (50, 18, 35), (8, 9, 10), None, 2.6, to=(32, -18, -60), spread=0.3, chance=0.05),
]

STRUCTURES: list[Structure] = [
    *TRUNK, *FAT, *MUSCLES, *HEAD, *BONES, *_spine(), *_teeth(), *GLANDS, *LARYNX, *AIR, *VESSELS, *NORMAL_NODES,
    *EXTRAS,
]  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a lesion sits: on the left side or the midline of the canonical frame (mm), and which way it grows."""

    at: Point
    weight: float
    grows: Point = (0.0, 0.0, 0.0)
    stretch: Point = (1.0, 1.0, 1.0)
    scatter_mm: Point = (4.0, 4.0, 6.0)
    largest_ml: float = 120.0  # what fits there


# Mucosal sites of primary tumours, by subsite.
MUCOSA: dict[str, tuple[Place, ...]] = {
    "oropharynx": (
        Place((18, -17, 26), 0.52, (0.6, 0.1, 0.0), (0.85, 1.0, 1.25), (6, 4, 7)),
        Place((10, -25, 8), 0.34, (0.3, -0.7, -0.1), (1.0, 1.1, 0.9), (8, 4, 5)),
        Place((7, -24, 47), 0.07, (0.0, -0.2, 0.4), (1.2, 1.0, 0.8)),
        Place((2, -5, 18), 0.07, (0.3, 0.3, 0.0), (1.2, 0.7, 1.4)),
    ),
    "larynx": (
        Place((6, -38, -36), 0.5, (0.4, -0.2, 0.0), (0.9, 1.2, 1.0)),
        Place((5, -30, -16), 0.42, (0.2, -0.5, 0.2), (1.1, 1.0, 1.0)),
        Place((6, -34, -50), 0.08, (0.4, 0.0, -0.2), (1.0, 1.0, 1.2)),
    ),
    "oral cavity": (
        Place((20, -48, 32), 0.38, (-0.3, 0.0, -0.2), (0.8, 1.4, 0.9)),
        Place((7, -62, 18), 0.24, (0.0, 0.3, -0.5), (1.2, 1.0, 0.8)),
        Place((32, -56, 28), 0.16, (0.4, 0.0, 0.0), (0.8, 1.3, 1.0)),
        Place((42, -44, 38), 0.12, (0.2, 0.0, 0.0), (0.7, 1.3, 1.2)),
        Place((33, -26, 34), 0.10, (0.3, 0.2, 0.0)),
    ),
    "hypopharynx": (
        Place((16, -23, -26), 0.7, (0.5, 0.2, 0.0), (0.9, 1.0, 1.4)),
        Place((4, -12, -46), 0.12, (0.0, 0.0, -0.3), (1.2, 0.8, 1.2)),
        Place((3, -7, -24), 0.18, (0.2, 0.2, 0.0), (1.2, 0.7, 1.4)),
    ),
    "nasopharynx": (
        Place((12, -9, 66), 0.7, (0.3, 0.3, 0.3)),
        Place((3, -9, 74), 0.3, (0.2, 0.2, 0.3), (1.3, 0.9, 0.9)),
    ),
    "other": (
        Place((28, -52, 70), 0.4, (0.1, 0.1, 0.0)),
        Place((8, -56, 72), 0.3, (0.3, 0.0, 0.0), (0.8, 1.4, 1.0)),
        Place((52, 6, 42), 0.3, (0.1, 0.0, 0.0)),
    ),
}

# Nodal levels of the neck; RP: retropharyngeal.
LEVELS: dict[str, Place] = {
    "I": Place((19, -50, 1), 1.0, (0.2, -0.2, -0.4), scatter_mm=(11, 8, 4), largest_ml=25),
    "II": Place((34, 0, 18), 1.0, (0.4, 0.2, -0.2), (0.9, 1.0, 1.3), (8, 7, 10)),
    "III": Place((29, -5, -24), 1.0, (0.4, 0.2, 0.0), (0.9, 1.0, 1.3), (6, 6, 9)),
    "IV": Place((26, -6, -66), 1.0, (0.3, 0.3, 0.0), (1.0, 1.0, 1.2), (7, 6, 11)),
    "V": Place((47, 27, -22), 1.0, (0.3, 0.2, 0.0), (1.0, 1.0, 1.2), (5, 8, 22), 30),
    "VI": Place((10, -30, -84), 1.0, (0.2, 0.2, -0.3), scatter_mm=(5, 4, 8), largest_ml=12),
    "RP": Place((15, -1, 52), 1.0, (0.2, 0.0, 0.0), (0.9, 0.8, 1.3), (2, 1, 10), 8),
}


class Warp:
    """Patient frame → canonical frame: size, tilt (pitch), turn (yaw) and roll of the head, and smooth deformation."""

    def __init__(self, rng: np.random.Generator, female: bool) -> None:
        self.size = rng.normal((0.945, 0.955, 0.935) if female else (1.0, 1.0, 1.0), (0.035, 0.035, 0.03))
        self.angles = np.radians(rng.normal(0, (4.5, 3.5, 2.5)))  # about x, z, y
        self.waves = rng.normal(0, 1, (8, 3)) * (2 * np.pi / 150.0) / np.sqrt(3)  # wavelengths near 150 mm
        self.phases = rng.uniform(0, 2 * np.pi, 8)
        self.amplitudes = rng.normal(0, 1.6, (8, 3)) / np.sqrt(2)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Canonical coordinates, mm, of points (n, 3) of the patient."""
        local = np.cos(points @ self.waves.T + self.phases) @ self.amplitudes
        bend = np.clip((points[:, 2] - NECK_PIVOT_MM[2]) / 130.0, 0, 1)
        pitch, yaw, roll = (angle * bend**2 * (3 - 2 * bend) for angle in self.angles)
        x, y, z = (points + local - NECK_PIVOT_MM).T
        y, z = y * np.cos(pitch) - z * np.sin(pitch), y * np.sin(pitch) + z * np.cos(pitch)
        x, y = x * np.cos(yaw) - y * np.sin(yaw), x * np.sin(yaw) + y * np.cos(yaw)
        x, z = x * np.cos(roll) - z * np.sin(roll), x * np.sin(roll) + z * np.cos(roll)
        return np.stack([x, y, z], axis=1) / self.size + NECK_PIVOT_MM


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], length_voxels: int) -> np.ndarray:
    """Standard normal field (float32) whose details are about `length_voxels` wide: white noise, interpolated."""
    knots = rng.standard_normal([n // length_voxels + 2 for n in shape], dtype=np.float32)
    field = enlarge(knots, length_voxels, shape)
    return field / max(float(field.std()), 1e-6)


def enlarge(coarse: np.ndarray, factor: int, shape: tuple[int, ...]) -> np.ndarray:
    """Linear interpolation onto a grid `factor` times finer with the same first voxel, cut to `shape`.

    The first index is the fastest in memory, as in SimpleITK, which spares copies later.
    """
    fine = np.ascontiguousarray(coarse.T)
    for axis, n in enumerate(reversed(shape)):
        before, after = np.take(fine, range(fine.shape[axis] - 1), axis), np.diff(fine, axis=axis)
        weights = np.arange(factor, dtype=np.float32).reshape(-1, *[1] * (fine.ndim - axis - 1)) / factor
        between = np.expand_dims(before, axis + 1) + np.expand_dims(after, axis + 1) * weights
        merged = between.reshape(*fine.shape[:axis], -1, *fine.shape[axis + 1 :])
        fine = merged[(slice(None),) * axis + (slice(n),)]
    return fine.T


@dataclass
class Body:
    """A patient on the drawing grid (`SHAPE` voxels of `SPACING_MM`, first voxel at `LOW_MM`): HU, SUV and frame."""

    coarse: np.ndarray  # (3, x, y, z), mm: `canonical` on every fourth voxel
    canonical: np.ndarray  # (3, x, y, z), mm
    depth_mm: np.ndarray  # (x, y, z), below the skin, negative outside
    hu: np.ndarray
    suv: np.ndarray
    contrast: bool

    def box(self, low: np.ndarray, high: np.ndarray) -> tuple[slice, slice, slice] | None:
        """Voxels that hold the canonical box `low`..`high`, or None where it lies outside the grid."""
        reach = COARSE * SPACING_MM
        near = np.ones(self.coarse.shape[1:], bool)
        for i in range(3):
            near &= (self.coarse[i] > low[i] - reach) & (self.coarse[i] < high[i] + reach)
        spans = [np.flatnonzero(near.any(axis=tuple({0, 1, 2} - {i}))) for i in range(3)]
        if not spans[0].size:
            return None
        first, last = zip(*[(int(span[0]) * COARSE, int(span[-1]) * COARSE + 1) for span in spans], strict=True)
        return tuple(slice(a, min(b, n)) for a, b, n in zip(first, last, SHAPE, strict=True))  # type: ignore[return-value]

    @cached_property
    def inside(self) -> np.ndarray:
        return np.clip(self.depth_mm / SPACING_MM + 0.5, 0, 1)

    def in_cranium(self, box: tuple[slice, slice, slice]) -> np.ndarray:
        """Which voxels of a box lie within the braincase."""
        points = self.canonical[:, *box]
        distance = [swept_distance(points, np.array([part.at] * 2), np.array(part.radii)) for part in CRANIUM]
        return np.minimum(*distance) < 1

    def where(self, canonical: np.ndarray) -> np.ndarray:
        """The patient's point, mm, that is nearest a canonical point, to the spacing of `coarse`."""
        away = np.square(self.coarse - canonical.reshape(3, 1, 1, 1)).sum(axis=0)
        return LOW_MM + np.array(np.unravel_index(away.argmin(), away.shape)) * COARSE * SPACING_MM

    def paint(self, part: Structure) -> None:
        """Blend a structure's CT number and uptake over what is there, with an edge one voxel wide."""
        ends = np.array([part.at, part.to or part.at], dtype=float)
        radii = np.array(part.radii, dtype=float)
        box = self.box(ends.min(axis=0) - radii, ends.max(axis=0) + radii)
        if box is None:
            return
        cover = np.clip(
            (1 - swept_distance(self.canonical[:, *box], ends, radii)) * radii.min() / SPACING_MM + 0.5, 0, 1
        )
        cover *= self.inside[box]
        for image, value in ((self.hu, part.hu), (self.suv, part.suv)):
            if value is not None:
                image[box] += cover * (value - image[box])


def swept_distance(points: np.ndarray, ends: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Distance of points (3, ...) to a segment in units of the semi-axes: below 1 is inside the swept ellipsoid."""
    scale = radii.astype(np.float32).reshape(3, 1, 1, 1)
    start = ends[0].astype(np.float32).reshape(3, 1, 1, 1)
    p = (points - start) / scale
    axis = ((ends[1] - ends[0]) / radii).astype(np.float32)
    length2 = float(axis @ axis)
    if length2 > 0:
        along = np.clip(np.tensordot(axis, p, 1) / length2, 0, 1)
        p = p - axis.reshape(3, 1, 1, 1) * along
    return np.sqrt(np.einsum("i...,i...->...", p, p))


def _coarse_frame(warp: Warp) -> np.ndarray:
    """Canonical coordinates (3, x, y, z), mm, of every fourth voxel of the drawing grid."""
    shape = tuple(n // COARSE + 1 for n in SHAPE)
    axes = [LOW_MM[i] + SPACING_MM * COARSE * np.arange(shape[i]) for i in range(3)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    return warp(points).T.reshape(3, *shape).astype(np.float32)


def _depth(canonical: np.ndarray) -> np.ndarray:
    x, y, z = canonical
    width, front, back = (np.interp(z, OUTLINE_MM[:, 0], OUTLINE_MM[:, k]) for k in (1, 2, 3))
    half, middle = (back - front) / 2, (back + front) / 2
    power = np.interp(z, (-120, -90, 0, 60), (2.6, 2.2, 2.3, 2.2))
    level = (np.abs(x / width) ** power + np.abs((y - middle) / half) ** power) ** (1 / power)
    depth = (1 - level) * np.minimum(width, half)
    nose = 1 - np.sqrt((x / 14) ** 2 + ((y + 88) / 24) ** 2 + ((z - 74) / 20) ** 2)
    depth = np.maximum(depth, nose * 14)
    return np.minimum(depth, VERTEX_MM - z).astype(np.float32)


def _fill(rng: np.random.Generator, height: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """CT number and uptake of skin, subcutaneous fat and the deep tissue between named structures (muscle and fat)."""
    fat_mm = np.where(height > 95, np.float32(4), np.float32(np.clip(rng.lognormal(np.log(7.0), 0.4), 3, 20)))
    # Thin sheets of fat where a smooth field crosses zero: the planes between muscles.
    muscle = np.clip(np.abs(smooth_noise(rng, depth.shape, 6)) * 4.0 - 0.7, 0, 1)
    muscle *= np.clip((depth - fat_mm) / SPACING_MM + 0.5, 0, 1)
    muscle[(depth < 2.5) & (height < 95)] = 0.6
    inside = np.clip(depth / SPACING_MM + 0.5, 0, 1)
    return inside * (900 + 155 * muscle) - 1000, inside * (0.3 + 0.6 * muscle)


def _individual(part: Structure, rng: np.random.Generator, contrast: bool) -> list[Structure]:
    """The structure as this patient has it: moved a little, of its own size and uptake, on one or both sides."""
    move, grow = rng.normal(0, 1.2, 3), rng.lognormal(0, 0.06, 3)
    uptake, shown = rng.normal(0, part.spread), rng.random() < part.chance
    sides = rng.normal(0, part.asymmetry, 2)
    if not shown:
        return []
    signs = (1, -1) if part.paired else (1,)
    return [_on_side(part, sign, move, grow, uptake + side, contrast) for sign, side in zip(signs, sides, strict=False)]


def _on_side(
    part: Structure, sign: int, move: np.ndarray, grow: np.ndarray, log_uptake: float, contrast: bool
) -> Structure:
    mirror = np.array([sign, 1, 1])
    at = mirror * (part.at + move)
    to = None if part.to is None else tuple(mirror * (part.to + move))
    return replace(
        part,
        at=tuple(at),
        to=to,
        radii=tuple(part.radii * grow),  # type: ignore[arg-type]
        hu=None if part.hu is None else part.hu + part.enhancement * contrast,
        suv=None if part.suv is None else part.suv * float(np.exp(log_uptake)),
    )


def draw_body(rng: np.random.Generator, *, female: bool, contrast: bool) -> Body:
    """A patient without tumour. Uptake is unblurred; both images carry the fine texture of tissue."""
    coarse = _coarse_frame(Warp(rng, female))
    canonical = np.stack([enlarge(axis, COARSE, SHAPE).T for axis in coarse]).transpose(0, 3, 2, 1)
    depth = enlarge(_depth(coarse), COARSE, SHAPE)
    hu, suv = _fill(rng, canonical[2], depth)
    body = Body(coarse, canonical, depth, hu, suv, contrast)
    for part in STRUCTURES:
        for own in _individual(part, rng, contrast):
            body.paint(own)
    variation = np.where(body.suv > 4, np.float32(0.17), np.float32(0.1))  # gyri vary more than tissue
    body.suv *= np.exp(variation * smooth_noise(rng, SHAPE, 4))
    if rng.random() < 0.7:
        _add_couch(body)
    return body


def _add_couch(body: Body) -> None:
    """A thin curved shell behind the patient, seen on CT only."""
    x, y = (LOW_MM[i] + SPACING_MM * np.arange(SHAPE[i]) for i in (0, 1))
    shell = np.abs(y[None] - (128 - 18 * (x[:, None] / 200) ** 2)) < 3
    shell &= np.abs(x[:, None]) < 205
    body.hu[shell[:, :, None] & (body.depth_mm < -SPACING_MM)] = -60


def blur(image: np.ndarray, fwhm_mm: float) -> np.ndarray:
    """Gaussian blur of an array on the drawing grid."""
    return ndimage.gaussian_filter(image.T, fwhm_mm / 2.3548 / SPACING_MM, truncate=3.0).T
