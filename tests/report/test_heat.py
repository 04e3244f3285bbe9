from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from unveil.family import HeatMap
from unveil.report.heat import EVEN, LEAST, MOST, draw


def test_a_cell_is_a_pixel_whose_colour_is_its_number() -> None:
    view = HeatMap(
        "load", {"first": [[0.0, 1.0, 2.0], [1.5, 9.0, 0.5]], "second": [[1.0, 1.0, 1.0]]}, [100, 2000, 4000], "tokens", "experts"
    )
    heat = draw(view)
    assert [(panel.name, panel.rows) for panel in heat.panels] == [("first", 2), ("second", 1)]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(heat.panels[0].picture))), dtype=np.float64)
    wanted = [[LEAST, EVEN, MOST], [(EVEN + MOST) / 2, MOST, (LEAST + EVEN) / 2]]
    assert np.abs(pixels - np.array(wanted)).max() <= 0.5
    assert [tick.label for tick in heat.x_ticks] == ["1 k", "2 k", "3 k", "4 k"]
    assert heat.x_ticks[-1].at == 100.0


def test_a_single_column_has_its_tick_in_the_middle() -> None:
    assert [tick.at for tick in draw(HeatMap("load", {"first": [[1.0]]}, [7.0])).x_ticks] == [50.0]
