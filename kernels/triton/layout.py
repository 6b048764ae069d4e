"""How weights lie (experts/grouped.py), for what makes and launches them in Python: tests and benchmarks."""

# Columns of a panel, and what widths are rounded up to.
PANEL = 64


def padded(size, padding=PANEL):
    return -(-size // padding) * padding


def paneled(matrices):
    """[matrices, n, k] in panels: [matrices, k / 64, n, 64]."""
    count, n, k = matrices.shape
    return matrices.reshape(count, n, k // PANEL, PANEL).transpose(1, 2).contiguous()


def sizes(w):
    """n and k of weights in panels."""
    _, panels, n, panel = w.shape
    return n, panels * panel
