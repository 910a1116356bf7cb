"""The numbers of the paper, as text: mean IoU over splits, * for runs of twice the length."""

from __future__ import annotations

NEIGHBORS = 7000 / (3 * 64 * 64)  # the paper's k as a share
LABELED = (3, 6, 12, 24)
SIZE, CHANNELS = 512, 64
THRESHOLDS = {"pseudolabel": (0.8, 0.95), "fixmatch": (0.8, 0.95)}

# Tables 1 and 5: data set -> (method, threshold) -> mean IoU for N_l = 3, 6, 12, 24.
MIOU: dict[str, dict[tuple[str, float | None], tuple[str, str, str, str]]] = {
    "jsrt": {
        ("supervised", None): (".59", ".73", ".81", ".85"),
        ("pseudolabel", 0.8): (".56", ".73", ".81", ".87"),
        ("pseudolabel", 0.95): (".57", ".74", ".82", ".87"),
        ("nearest_neighbor", None): (".64", ".76", ".81", ".84"),
        ("fixmatch", 0.8): (".71", ".79", ".80", ".85*"),
        ("fixmatch", 0.95): (".67", ".77", ".81", ".85*"),
        ("rpg", None): (".71", ".79", ".83", ".87"),
        ("rpg_plus", None): (".77*", ".85*", ".87*", ".88*"),
    },
    "retouch": {
        ("supervised", None): (".15", ".27", ".35", ".49"),
        ("iic", None): (".22", ".32", ".41", ".53"),
        ("mean_teacher", None): (".21", ".31", ".39", ".50"),
        ("mlds", None): (".16", ".35", ".54", ".59"),
        ("rpg", None): (".21", ".30", ".45", ".54"),
        ("rpg_plus", None): (".31", ".45", ".55", ".59"),
    },
}
FULL_ACCESS = {"jsrt": "123 labeled images .85", "retouch": "415 labeled images .62"}

# Table 2, jsrt: nearest_neighbor, N_l = 3, by pool size.
POOL_SIZE = {1: ".52", 2: ".58", 3: ".64", 4: ".65", 5: ".66"}

# Table 3, jsrt: rpg, N_l = 3, by pool size and share of neighbors; some did not fit the authors' 11 GB card.
NEIGHBOR_SHARES = (0.25, 0.5, 0.75, 1.0)
NEIGHBORS_BY_POOL = {
    1: (".55", ".57", ".56", ".52"),
    2: (".60", ".62", ".58", ".51"),
    3: (".66", ".70", ".67", ".52"),
    4: (".68", ".68", "OOM", "OOM"),
    5: (".68", "OOM", "OOM", "OOM"),
}

# Table 4, jsrt: N_l = 3; the method and threshold -> IoU by class.
CLASSES = ("right_lung", "left_lung", "heart", "right_clavicle", "left_clavicle")
IOU_PER_CLASS: dict[tuple[str, float | None], tuple[str, ...]] = {
    ("supervised", None): (".83", ".81", ".59", ".47", ".42"),
    ("pseudolabel", 0.8): (".86", ".87", ".65", ".35", ".28"),
    ("fixmatch", 0.8): (".94", ".93", ".82", ".50", ".44"),
    ("rpg", None): (".91", ".90", ".71", ".55", ".55"),
    ("rpg_plus", None): (".95*", ".95*", ".85*", ".60*", ".50*"),
}
