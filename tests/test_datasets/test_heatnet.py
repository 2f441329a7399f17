# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from mmseg_mile.datasets import HeatNetDataset
from mmseg_mile.datasets.heatnet import pair_by_time

SECONDS = '1570722156'


@pytest.fixture
def root(tmp_path, put_image, put_mask):
    for drive in ('seq_00_day/00', 'seq_00_day/01', 'seq_01_day/00',
                  'seq_00_night/00'):
        stamp = f'{SECONDS}_95217704'
        put_image(f'train/{drive}/fl_rgb/fl_rgb_{stamp}0.png',
                  f'train/{drive}/fl_ir_aligned/fl_ir_aligned_{stamp}.png')
        if 'day' in drive:
            put_mask(
                f'train/{drive}/fl_rgb_labels/fl_rgb_labels_{stamp}0.png',
                values=range(14))
    for time in ('day', 'night'):
        stem = f'test/{time}/{{}}/fl_{SECONDS}_1'
        put_image(
            stem.format('ImagesRGB') + '20_rgb.png',
            stem.format('ImagesIR') + '2_ir.png')
        put_mask(stem.format('SegmentationClass') + '20_rgb.png')
    return str(tmp_path)


def build(root, split='train', **kwargs):
    return HeatNetDataset(data_root=root, split=split, **kwargs)


def test_train_frames_of_rgb(root, names_of):
    assert names_of(build(root)) == [
        f'train/{drive}/fl_rgb/fl_rgb_{SECONDS}_952177040.png'
        for drive in ('seq_00_day/00', 'seq_00_day/01', 'seq_01_day/00')
    ]


def test_thermal_name_may_lack_trailing_zeros(root, pairs_of):
    image, mask = pairs_of(build(root, modality='thermal'))[0]
    assert image == f'fl_ir_aligned_{SECONDS}_95217704.png'
    assert mask == f'fl_rgb_labels_{SECONDS}_952177040.png'


@pytest.mark.parametrize('time, count', [('day', 1), ('night', 1), ('all', 2)])
@pytest.mark.parametrize('modality', ['rgb', 'thermal'])
def test_test_frames(root, time, count, modality):
    dataset = build(root, 'test', modality=modality, time=time)
    assert len(dataset) == count


def test_test_frames_are_of_the_modality(root, pairs_of):
    assert pairs_of(build(root, 'test', modality='thermal')) == [
        (f'fl_{SECONDS}_12_ir.png', f'fl_{SECONDS}_120_rgb.png')
    ]


@pytest.mark.parametrize('split, source', [('train', 'pseudo'),
                                           ('test', 'human')])
def test_annotation_source_is_declared(root, split, source):
    assert build(root, split).metainfo['annotation'] == source


def test_modality_is_declared(root):
    metainfo = build(root, modality='thermal').metainfo
    assert metainfo['modality'] == 'thermal'
    assert metainfo['domain'] == 'heatnet_thermal_day'


def test_background_and_ignore_become_255(root, labels_of):
    assert labels_of(build(root)) == [*range(12), 255]


@pytest.mark.parametrize('time', ['night', 'all'])
def test_train_has_no_night_labels(root, time):
    with pytest.raises(ValueError, match=f"by day only, got time='{time}'"):
        build(root, time=time)


def test_sequences_and_drives_can_be_chosen(root, names_of):
    dataset = build(root, sequences=['seq_00_day/01', 'seq_01_day'])
    drives = [name.split('/fl_')[0] for name in names_of(dataset)]
    assert drives == ['train/seq_00_day/01', 'train/seq_01_day/00']


def test_unknown_sequence_is_rejected(root):
    with pytest.raises(ValueError, match="sequences.*seq_01_day.*'seq_09"):
        build(root, sequences=['seq_09_day'])


def test_sequences_of_test_are_rejected(root):
    with pytest.raises(ValueError, match='no sequences'):
        build(root, 'test', sequences=['seq_00_day'])


def test_frames_without_partner_are_left_out(root, put_image):
    put_image('train/seq_00_day/00/fl_rgb/fl_rgb_1570722157_5.png')
    assert len(build(root)) == 3


def test_frames_without_partner_are_counted(root, put_image, monkeypatch):
    put_image('train/seq_00_day/00/fl_rgb/fl_rgb_1570722157_5.png')
    said = []
    monkeypatch.setattr('mmseg_mile.datasets.heatnet.print_log',
                        lambda text, **kwargs: said.append(text))
    build(root)
    assert '3 rgb frames' in said[0] and 'left out 1 file' in said[0]


def test_arrays_that_were_not_converted_name_the_converter(root, tmp_path):
    np.save(tmp_path / f'test/day/SegmentationClass/fl_{SECONDS}_7_rgb.npy',
            np.zeros((2, 2)))
    with pytest.raises(
            ValueError,
            match='1 label arrays.*not converted'
            r'[\s\S]*dataset_converters/heatnet.py'):
        build(root, 'test')


def test_missing_train_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="missing folder .*/train'"):
        build(str(tmp_path))


def test_pairing_goes_by_name_not_by_order():
    pairs = pair_by_time(['a_1_10.png', 'a_1_20.png', 'a_2_5.png'],
                         ['b_0_1.png', 'b_1_20.png', 'b_2_5.png'])
    assert pairs == [('a_1_20.png', 'b_1_20.png'), ('a_2_5.png', 'b_2_5.png')]


def test_equal_stamps_pair_before_similar_ones():
    pairs = pair_by_time(['a_1_5.png', 'a_1_50.png'],
                         ['b_1_50.png', 'b_1_5.png'])
    assert pairs == [('a_1_5.png', 'b_1_5.png'), ('a_1_50.png', 'b_1_50.png')]


def test_ambiguous_stamps_do_not_pair():
    assert pair_by_time(['a_1_5.png', 'a_1_50.png'], ['b_1_500.png']) == []


def test_other_pictures_of_a_frame_are_no_masks():
    assert pair_by_time(['a_1_5.png'], ['b_1_5_color.png']) == []
