"""The study's colours, for whatever draws: figures, viewers, contact sheets."""

# One meaning a colour, everywhere; pairs that meet in a figure differ in lightness too, so that they survive colour
# blindness and grey printing (after Okabe and Ito, and Tol).
COLORS = {
    "manual": "#3D4451",
    "cnn": "#0072B2",
    "primary": "#D55E00",
    "nodes": "#009E73",
    "all": "#5B4B8A",
    "high_risk": "#A3162A",
    "low_risk": "#3F8FC4",
    "outlier": "#E0218A",
    "neutral": "#8A8F98",
}
INK, HAIRLINE, PAPER = "#1F2430", "#D5D8DD", "#FFFFFF"

# The same meanings on a dark page: what would not stand out there has a lighter shade.
DARK_PAPER = "#16191E"
DARK = {
    COLORS["manual"]: "#B9C0CB",
    COLORS["cnn"]: "#4AA3DF",
    COLORS["primary"]: "#F0803C",
    COLORS["nodes"]: "#2DBB8E",
    COLORS["all"]: "#A695E0",
    COLORS["high_risk"]: "#EE6A7C",
    COLORS["low_risk"]: "#6DB5E2",
    COLORS["outlier"]: "#F062B0",
    COLORS["neutral"]: "#A0A6B0",
    INK: "#DFE3E8",
    HAIRLINE: "#3A404A",
    PAPER: DARK_PAPER,
    "#6B7079": "#9AA1AC",
}
