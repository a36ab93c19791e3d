"""What the synthetic scenes are made of. Imports nothing, so that options can name it."""

from typing import Final

SIZE: Final = 48
CELL: Final = 16
COLOURS: Final = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 80, 230), "yellow": (230, 220, 50),
                  "pink": (240, 120, 200), "white": (240, 240, 240)}
SHAPES: Final = ("circle", "square", "triangle", "cross", "ring")
PLACES: Final = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))
