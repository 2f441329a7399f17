# SPDX-License-Identifier: Apache-2.0
"""Packaging of mmseg_mile; ``constraints.txt`` has the versions tried."""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# The oldest releases whose interfaces the code was written against. The three
# OneDL distributions provide the import names mmengine, mmcv and mmseg.
INSTALL_REQUIRES = [
    'onedl-mmengine>=0.10.12',
    'onedl-mmcv>=2.3.6',
    'onedl-mmsegmentation>=1.4.2',
    'torch>=2.6',
    'peft>=0.21',
    'safetensors>=0.4',
    'ftfy',  # the CLIP tokenizer of mmseg
    'numpy>=2.0',
    'opencv-python>=4.10',
    'matplotlib>=3.8',
    'pandas>=2.2',
    'tabulate>=0.9',  # Markdown tables of pandas
    'filelock>=3.12',
    'jinja2>=3.1',
    'markupsafe>=2.1',
    'prettytable>=3.0',
]

# Writes experts as ONNX and runs them: tools/export_expert.py OUT.onnx.
ONNX_REQUIRES = ['onnx>=1.17', 'onnxscript>=0.5', 'onnxruntime>=1.20']

# The gate's look at an image through CLIP: CLIPEmbedder.
CLIP_REQUIRES = ['transformers>=5.0', 'pillow']

TEST_REQUIRES = ['hypothesis>=6.100', 'pytest>=8.0', 'pytest-xdist>=3.5'] + (
    ONNX_REQUIRES)

# Learns the tasks of a stream on several machines: tools/train_experts.py.
RAY_REQUIRES = ['ray>=2.10']

# A page in the browser: tools/serve.py.
SERVE_REQUIRES = ['gradio>=6.0']

DEV_REQUIRES = TEST_REQUIRES + [
    'codespell',
    'flake8',
    'flake8-bugbear',
    'interrogate',
    'isort',
    'mypy',
    'pre-commit',
    'pre-commit-hooks',
    'yapf',
]


def read_version() -> str:
    """Read ``__version__`` as text, before any dependency is installed."""
    text = (ROOT / 'mmseg_mile' / 'version.py').read_text(encoding='utf-8')
    found = re.search(r"^__version__ = '([^']+)'$", text, flags=re.MULTILINE)
    if found is None:
        raise RuntimeError('mmseg_mile/version.py has no __version__ line')
    return found.group(1)


def read_description() -> str:
    """Read the README, which a partial checkout may lack."""
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.is_file() else ''


if __name__ == '__main__':
    setup(
        name='mmseg_mile',
        version=read_version(),
        description='Segmentation models that keep learning new domains and '
        'sensors with LoRA experts, as an extension of MMSegmentation',
        long_description=read_description(),
        long_description_content_type='text/markdown',
        license='Apache-2.0',
        keywords='semantic segmentation, continual learning, LoRA, MMSeg',
        classifiers=[
            'Development Status :: 4 - Beta',
            'Operating System :: POSIX :: Linux',
            'Programming Language :: Python :: 3',
            'Programming Language :: Python :: 3.10',
            'Programming Language :: Python :: 3.11',
            'Programming Language :: Python :: 3.12',
            'Programming Language :: Python :: 3.13',
            'Topic :: Scientific/Engineering :: Artificial Intelligence',
        ],
        packages=find_packages(include=['mmseg_mile', 'mmseg_mile.*']),
        package_data={'mmseg_mile.visualization': ['templates/*']},
        python_requires='>=3.10',
        install_requires=INSTALL_REQUIRES,
        extras_require=dict(
            test=TEST_REQUIRES,
            dev=DEV_REQUIRES,
            ray=RAY_REQUIRES,
            onnx=ONNX_REQUIRES,
            clip=CLIP_REQUIRES,
            serve=SERVE_REQUIRES,
            extras=ONNX_REQUIRES + CLIP_REQUIRES + RAY_REQUIRES +
            SERVE_REQUIRES),
        zip_safe=False,
    )
