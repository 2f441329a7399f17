# SPDX-License-Identifier: Apache-2.0
"""What the streets of a data set look like, as ranges to draw from."""
from __future__ import annotations

from dataclasses import dataclass, field

Range = tuple[float, float]
Color = tuple[float, float, float]


@dataclass(frozen=True)
class StreetStyle:
    """Camera, street and traffic of one data set.

    Args:
        focal (Range): Focal length over image width.
        horizon (Range): Row of the horizon over image height.
        mount (Range): Camera height in metres.
        hood (str): Own car in view: 'none', 'bonnet' or 'dashboard'.
        lanes (tuple[int, int]): Fewest and most lanes.
        right_hand (bool): Traffic keeps right.
        sidewalk (Range): Width in metres.
        sidewalk_chance (float): Otherwise an unpaved margin.
        verge_chance (float): Grass between sidewalk and buildings.
        blocks (dict[str, float]): Weight of each roadside block.
        storeys (tuple[int, int]): Floors of a building.
        facades (tuple[Color, ...]): Base colours of the buildings.
        counts (dict[str, Range]): Mean number range of each object.
    """
    focal: Range
    horizon: Range
    mount: Range
    hood: str
    lanes: tuple[int, int]
    right_hand: bool
    sidewalk: Range
    sidewalk_chance: float
    verge_chance: float
    blocks: dict[str, float]
    storeys: tuple[int, int]
    facades: tuple[Color, ...]
    counts: dict[str, Range] = field(default_factory=dict)


# yapf: disable
GERMAN = StreetStyle(
    focal=(0.72, 0.86), horizon=(0.40, 0.46), mount=(1.3, 1.6),
    hood='bonnet', lanes=(2, 3), right_hand=True, sidewalk=(2.4, 4.0),
    sidewalk_chance=1., verge_chance=0.35,
    blocks=dict(building=0.56, park=0.16, wall=0.12, fence=0.12, gap=0.04),
    storeys=(3, 6),
    facades=((.58, .54, .47), (.50, .49, .47), (.62, .58, .50),
             (.46, .38, .34), (.55, .57, .58), (.66, .60, .44)),
    counts=dict(parked=(2, 6), car=(1, 4), truck=(.2, .8), bus=(.3, .9),
                motorcycle=(0, 1.2), bicycle=(.3, 1.8), person=(2, 6),
                tree=(1, 4), bush=(0, 2), pole=(2, 4), lamp=(1, 3),
                light=(.4, 2), sign=(1.2, 3)))

# Alpine roads and Swiss towns: lower houses, more green, fewer people.
SWISS = StreetStyle(
    focal=(0.76, 0.90), horizon=(0.40, 0.47), mount=(1.3, 1.5),
    hood='none', lanes=(2, 3), right_hand=True, sidewalk=(1.8, 3.2),
    sidewalk_chance=.95, verge_chance=0.5,
    blocks=dict(building=0.42, park=0.28, wall=0.14, fence=0.12, gap=0.04),
    storeys=(2, 5),
    facades=((.66, .62, .54), (.60, .52, .42), (.54, .55, .55),
             (.70, .66, .60), (.48, .40, .33)),
    counts=dict(parked=(1, 4), car=(1, 4), truck=(0, .9), bus=(0, .8),
                motorcycle=(0, 1.), bicycle=(.2, 1.6), person=(1, 5),
                tree=(1, 4), bush=(0, 2), pole=(2, 4), lamp=(1.5, 3.5),
                light=(.4, 2), sign=(1.4, 3)))

AMERICAN = StreetStyle(
    focal=(0.62, 0.80), horizon=(0.44, 0.54), mount=(1.2, 1.5),
    hood='dashboard', lanes=(3, 5), right_hand=True, sidewalk=(1.4, 2.6),
    sidewalk_chance=.85, verge_chance=0.55,
    blocks=dict(building=0.44, park=0.24, wall=0.10, fence=0.14, gap=0.08),
    storeys=(1, 9),
    facades=((.52, .36, .28), (.63, .55, .46), (.44, .46, .52),
             (.70, .70, .68), (.38, .34, .33), (.58, .50, .36)),
    counts=dict(parked=(1, 5), car=(3, 7), truck=(0.2, 1.4), bus=(.1, .9),
                motorcycle=(.2, 1.), bicycle=(0, 1.2), person=(.5, 4),
                tree=(1, 5), bush=(0, 2), pole=(2, 5), lamp=(1, 3),
                light=(.8, 3), sign=(1, 3)))

INDIAN = StreetStyle(
    focal=(0.68, 0.84), horizon=(0.42, 0.50), mount=(1.4, 1.8),
    hood='none', lanes=(2, 3), right_hand=False, sidewalk=(1.8, 3.8),
    sidewalk_chance=.42, verge_chance=0.45,
    blocks=dict(building=0.52, park=0.2, wall=0.14, fence=0.11, gap=0.05),
    storeys=(1, 4),
    facades=((.72, .50, .38), (.50, .62, .62), (.76, .68, .42),
             (.62, .48, .54), (.56, .66, .48), (.70, .66, .60)),
    counts=dict(parked=(1, 3), car=(1, 4), truck=(.3, 1.5), bus=(.1, 1.),
                motorcycle=(2, 5), bicycle=(.2, 1.4), person=(2, 7),
                tree=(1, 4), bush=(0, 3), pole=(2, 5), lamp=(0, 2),
                light=(.2, 1.2), sign=(.3, 1.6), autorickshaw=(1.2, 3.),
                billboard=(.5, 2.2), animal=(.2, 1.2), barrier=(.2, 1.4),
                bridge=(0, .35), cart=(0, .6), rail=(0, .8)))

# Freiburg: as the German towns, seen by a roof camera of twice the width.
FREIBURG = StreetStyle(
    focal=(0.46, 0.54), horizon=(0.38, 0.44), mount=(1.6, 1.8),
    hood='none', lanes=(2, 3), right_hand=True, sidewalk=(2.2, 3.6),
    sidewalk_chance=1., verge_chance=0.4,
    blocks=dict(building=0.52, park=0.2, wall=0.1, fence=0.14, gap=0.04),
    storeys=(2, 5), facades=GERMAN.facades,
    counts=dict(parked=(2, 6), car=(1, 4), truck=(0, .7), bus=(0, .5),
                motorcycle=(0, 1.), bicycle=(.6, 2.4), person=(2, 6),
                tree=(1, 4), bush=(0, 2), pole=(2, 4), lamp=(1, 3),
                light=(.3, 1.5), sign=(1, 2.6)))
# yapf: enable
