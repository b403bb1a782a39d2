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
