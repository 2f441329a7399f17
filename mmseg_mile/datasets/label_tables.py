# SPDX-License-Identifier: Apache-2.0
"""Native labels -> train ids, class names and colours, as plain data.

Train ids count the classes of a label space from 0; 255 is ignored. Class
names are written as Cityscapes writes them wherever two datasets mean the same
thing, because predictions of different label spaces are compared by name.
"""
from __future__ import annotations

IGNORE = 255

# yapf: disable
CITYSCAPES_CLASSES = (
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light',
    'traffic sign', 'vegetation', 'terrain', 'sky', 'person', 'rider', 'car',
    'truck', 'bus', 'train', 'motorcycle', 'bicycle')
CITYSCAPES_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156),
    (190, 153, 153), (153, 153, 153), (250, 170, 30), (220, 220, 0),
    (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60),
    (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100),
    (0, 0, 230), (119, 11, 32))

# `labelIds` of the Cityscapes archive -> train id; every other id is ignored.
CITYSCAPES_RAW_TO_TRAIN_ID = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9,
    23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18}

# Label names of the Cityscapes polygons -> train id. 'license plate' stands
# apart: it has the raw id -1, which means that its polygon is not drawn.
CITYSCAPES_NAME_TO_TRAIN_ID = {
    **{name: index for index, name in enumerate(CITYSCAPES_CLASSES)},
    **dict.fromkeys(
        ('unlabeled', 'ego vehicle', 'rectification border', 'out of roi',
         'static', 'dynamic', 'ground', 'parking', 'rail track', 'guard rail',
         'bridge', 'tunnel', 'polegroup', 'caravan', 'trailer'), IGNORE)}
CITYSCAPES_NOT_DRAWN = ('license plate', )

# IDD label name -> train id of Cityscapes. 'terrain' (9) is what IDD calls
# non-drivable fallback; an autorickshaw has no counterpart.
IDD_NAME_TO_CS_TRAIN_ID = {
    'road': 0, 'parking': 255, 'drivable fallback': 255, 'sidewalk': 1,
    'rail track': 255, 'non-drivable fallback': 9, 'person': 11,
    'animal': 255, 'rider': 12, 'motorcycle': 17, 'bicycle': 18,
    'autorickshaw': 255, 'car': 13, 'truck': 14, 'bus': 15, 'caravan': 255,
    'trailer': 255, 'train': 16, 'vehicle fallback': 255, 'curb': 255,
    'wall': 3, 'fence': 4, 'guard rail': 255, 'billboard': 255,
    'traffic sign': 7, 'traffic light': 6, 'pole': 5, 'polegroup': 255,
    'obs-str-bar-fallback': 255, 'building': 2, 'bridge': 255, 'tunnel': 255,
    'vegetation': 8, 'sky': 10, 'fallback background': 255, 'unlabeled': 255,
    'ego vehicle': 255, 'rectification border': 255, 'out of roi': 255,
    'license plate': 255}

# IDD label name -> level-3 id, the 26 classes of the official score.
IDD_NAME_TO_LEVEL3_ID = {
    'road': 0, 'parking': 1, 'drivable fallback': 1, 'sidewalk': 2,
    'rail track': 3, 'non-drivable fallback': 3, 'person': 4, 'animal': 4,
    'rider': 5, 'motorcycle': 6, 'bicycle': 7, 'autorickshaw': 8, 'car': 9,
    'truck': 10, 'bus': 11, 'caravan': 12, 'trailer': 12, 'train': 12,
    'vehicle fallback': 12, 'curb': 13, 'wall': 14, 'fence': 15,
    'guard rail': 16, 'billboard': 17, 'traffic sign': 18,
    'traffic light': 19, 'pole': 20, 'polegroup': 20,
    'obs-str-bar-fallback': 21, 'building': 22, 'bridge': 23, 'tunnel': 23,
    'vegetation': 24, 'sky': 25, 'fallback background': 25, 'unlabeled': 255,
    'ego vehicle': 255, 'rectification border': 255, 'out of roi': 255,
    'license plate': 255}

# A level-3 class of several labels carries the name of its main one.
IDD_LEVEL3_CLASSES = (
    'road', 'drivable fallback', 'sidewalk', 'non-drivable fallback',
    'person', 'rider', 'motorcycle', 'bicycle', 'autorickshaw', 'car',
    'truck', 'bus', 'vehicle fallback', 'curb', 'wall', 'fence',
    'guard rail', 'billboard', 'traffic sign', 'traffic light', 'pole',
    'obs-str-bar-fallback', 'building', 'bridge', 'vegetation', 'sky')
IDD_LEVEL3_PALETTE = (
    (128, 64, 128), (81, 0, 81), (244, 35, 232), (152, 251, 152),
    (220, 20, 60), (255, 0, 0), (0, 0, 230), (119, 11, 32), (255, 204, 54),
    (0, 0, 142), (0, 0, 70), (0, 60, 100), (136, 143, 153), (220, 190, 40),
    (102, 102, 156), (190, 153, 153), (180, 165, 180), (174, 64, 67),
    (220, 220, 0), (250, 170, 30), (153, 153, 153), (169, 187, 214),
    (70, 70, 70), (150, 100, 100), (107, 142, 35), (70, 130, 180))

# HeatNet merges: 0 with parking, 1 with other ground, 2 with walls, 5 with
# traffic lights and signs, 9 with riders, 10 all larger vehicles, 11 with
# motorcycles.
HEATNET_CLASSES = (
    'road', 'sidewalk', 'building', 'curb', 'fence', 'pole', 'vegetation',
    'terrain', 'sky', 'person', 'car', 'bicycle')
HEATNET_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (220, 190, 40),
    (190, 153, 153), (153, 153, 153), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (0, 0, 142), (119, 11, 32))
HEATNET_BACKGROUND = 12
HEATNET_IGNORE = 13

CAMVID_CLASSES = (
    'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign symbol',
    'fence', 'car', 'pedestrian', 'bicyclist')
CAMVID_PALETTE = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128),
    (60, 40, 222), (128, 128, 0), (192, 128, 128), (64, 64, 128),
    (64, 0, 128), (64, 64, 0), (0, 128, 192))
CAMVID_IGNORE = 11

IDD_LITE_CLASSES = (
    'drivable', 'non-drivable', 'living things', 'vehicles',
    'road-side objects', 'far objects', 'sky')
IDD_LITE_PALETTE = (
    (128, 64, 128), (244, 35, 232), (220, 20, 60), (0, 0, 142),
    (220, 190, 40), (107, 142, 35), (70, 130, 180))

# CamVid id -> IDD-Lite class. A bicyclist (10) is ignored: IDD counts the
# rider as a living thing and the bicycle as a vehicle, CamVid holds both as
# one.
CAMVID_TO_IDD_LITE = {
    0: 6, 1: 5, 2: 4, 3: 0, 4: 1, 5: 5, 6: 4, 7: 4, 8: 3, 9: 2,
    10: 255, 11: 255}
# yapf: enable
