# SPDX-License-Identifier: Apache-2.0
"""The leave-one-out study: opens finished runs, removes experts, scores."""
from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import (Any, Callable, Dict, Iterable, Iterator, List, Mapping,
                    NamedTuple, Optional, Sequence, Tuple)

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

from mmseg.registry import TASK_UTILS
from mmseg_mile.apis.library_model import library_config
from mmseg_mile.engine.incremental_task_loop import IncrementalTaskLoop
from mmseg_mile.engine.task_evaluator import ImageLog
from mmseg_mile.engine.work_dir import commit, device, versions
from mmseg_mile.evaluation import leave_one_out as board
from mmseg_mile.evaluation.domain_iou import DomainIoU
from mmseg_mile.evaluation.leave_one_out import (Leak, LeaveOneOut, Run, Score,
                                                 methods_of, removals)
from mmseg_mile.evaluation.results import StreamResults, write_numbers
from mmseg_mile.files import read_json, write_json, write_text
from mmseg_mile.gates.base_gate import (RELATIVE_TAU, TOP_K, BaseGate,
                                        apply_ood_policy)
from mmseg_mile.gates.prototype_gate import PrototypeGate
from mmseg_mile.library.edits import open_library
from mmseg_mile.methods.mile.expert_heads import heaviest
from mmseg_mile.methods.mile.expert_segmentor import ExpertSegmentor
from mmseg_mile.methods.mile.lineage import children
from mmseg_mile.methods.semla.semla_gate import SemLAGate
from mmseg_mile.structures import Routing, Task
from mmseg_mile.visualization.charts import leave_one_out_chart
from mmseg_mile.visualization.plots import save_figure

_STATISTICS = ('metric', 'num_prototypes', 'ood_quantile', 'shrinkage',
               'perturbation_weight')
_WEIGHTS = ('top_k', 'tau', 'relative')
# Wrappers that only say how the images of the datasets inside are combined.
_WRAPPERS = ('ConcatDataset', 'RepeatDataset', 'ClassBalancedDataset',
             'MultiImageMixDataset')
# What of a model's config has no part in predictions that are told their
# mixture.
_IDLE = ('gate', 'fusion', 'ood_policy', 'child_averaging', 'init_from')
# Weights that agree in as many digits give one prediction.
_DIGITS = 6
Removed = Tuple[str, ...]
Log = Callable[[str], None]


class Method(NamedTuple):
    """Gate and fusion of one compared method.

    Args:
        gate (dict): Config of its gate.
        fusion (str): 'weights' and 'logits' as in ``ExpertSegmentor``;
            'adapters' averages no heads, the nearest expert's is taken:
            heads that were initialised independently cannot be averaged.
        ood_policy (str): As in ``ExpertSegmentor``.
    """
    gate: Dict[str, Any]
    fusion: str = 'weights'
    ood_policy: str = 'nearest'


def leave_one_out(work_dirs: Sequence[Path],
                  out: Path,
                  config: Optional[Config] = None,
                  gate: Optional[Mapping[str, Any]] = None,
                  taus: Sequence[float] = (),
                  options: Optional[Mapping[str, Any]] = None,
                  log: Log = print) -> LeaveOneOut:
    """Score every task of some runs with experts left out.

    What is finished is kept in ``out/cells``: the same call again goes on,
    and a call with more methods computes only these.

    Args:
        work_dirs (Sequence[Path]): Of one method on one stream, one per
            seed.
        out (Path): Gets leave_one_out.{json,md,csv,png} and images.jsonl.
        config (Config, optional): Trusted, and taken instead of the one that
            the libraries carry. Defaults to None.
        gate (Mapping[str, Any], optional): Options of the gate that shall
            differ from those of the run's, see :func:`gate_options`.
        taus (Sequence[float]): Further temperatures of SemLA's weights.
            Defaults to ().
        options (Mapping[str, Any], optional): Settings that override the
            config, by dotted name.
        log (Callable): Told what goes on. Defaults to print.

    Returns:
        LeaveOneOut: All scores.

    Raises:
        ValueError: If the runs do not fit together, or an option is wrong.
    """
    runs: List[Run] = []
    images: List[Dict[str, Any]] = []
    for work_dir, results in read_finished(work_dirs):
        study = Study(work_dir, results, out, config, options or {}, gate
                      or {}, taus)
        scores, lines = study.run(log)
        images += lines
        leaks = [
            leak for removed in dict.fromkeys(s.removed for s in scores)
            for leak in study.leaks(removed)
        ]
        runs.append(
            Run(results.seed, tuple(leaks), tuple(scores),
                dict(commit=commit(), versions=versions(), device=device())))
        found = LeaveOneOut(results.stream, results.method,
                            tuple(results.tasks), study.families,
                            study.options, tuple(runs))
        _write(found, images, out)
    return found


def _write(found: LeaveOneOut, images: Sequence[Mapping[str, Any]],
           out: Path) -> None:
    found.save(out / 'leave_one_out.json')
    write_text(out / 'leave_one_out.md', board.markdown(found))
    write_text(out / 'leave_one_out.csv', board.csv_lines(found))
    save_figure(leave_one_out_chart(found), out / 'leave_one_out.png')
    lines = [
        json.dumps(write_numbers(image), allow_nan=False) for image in images
    ]
    write_text(out / 'images.jsonl', ''.join(f'{line}\n' for line in lines))


def read_finished(
        work_dirs: Sequence[Path]) -> List[Tuple[Path, StreamResults]]:
    """Runs of one method on one stream, by seed.

    Raises:
        ValueError: If a folder holds no finished run, the runs differ in
            more than the seed, or there is nothing to leave out.
    """
    runs: List[Tuple[Path, StreamResults]] = []
    for folder in map(Path, work_dirs):
        if not (folder / 'results.json').is_file():
            raise ValueError(f'{folder} holds no results.json: name the work '
                             'dirs of finished runs')
        results = StreamResults.load(folder / 'results.json')
        learned = int(results.cost.is_learned.sum())
        if learned < len(results.tasks):
            raise ValueError(f'{folder} has learned {learned} of '
                             f'{len(results.tasks)} tasks: finish it with '
                             'tools/train.py --resume')
        runs.append((folder, results))
    if not runs:
        raise ValueError('name one or more work dirs of finished runs')
    runs.sort(key=lambda run: run[1].seed)
    first = runs[0][1]
    for folder, results in runs[1:]:
        for name in ('stream', 'method', 'tasks'):
            if getattr(results, name) != getattr(first, name):
                raise ValueError(
                    f'{folder} is of {name} {getattr(results, name)!r}, '
                    f'{runs[0][0]} of {getattr(first, name)!r}: only seeds '
                    'of one method on one stream can be joined')
    seeds = [results.seed for _, results in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f'the seeds {seeds} are not different: name each '
                         'run once')
    if len(first.tasks) < 2:
        raise ValueError(f'{runs[0][0]} has learned one task: no expert is '
                         'left without it')
    return runs


def gate_options(gate: Optional[BaseGate],
                 changes: Mapping[str, Any]) -> Dict[str, Any]:
    """Options of the gates: those of the run's own gate, and changes.

    Weights are relative to the nearest distance unless the run's gate is
    SemLA's: ``tau`` then holds for any embedding and metric.

    Args:
        gate (BaseGate, optional): Of the run.
        changes (Mapping[str, Any]): What shall differ.

    Raises:
        ValueError: If there is no such option, or a value is out of range.
    """
    unknown = sorted(set(changes) - {*_STATISTICS, *_WEIGHTS})
    if unknown:
        raise ValueError(f'--gate has no option {unknown[0]!r}, options are '
                         f'{[*_WEIGHTS, *_STATISTICS]}')
    own = gate if isinstance(gate, PrototypeGate) else SemLAGate()
    options: Dict[str, Any] = dict(
        top_k=TOP_K, tau=RELATIVE_TAU, relative=True)
    weights = _WEIGHTS if isinstance(gate, SemLAGate) else ()
    options.update(
        {name: getattr(own, name)
         for name in (*weights, *_STATISTICS)})
    options.update(changes)
    SemLAGate(**options)
    return options


def study_methods(options: Mapping[str, Any],
                  taus: Sequence[float]) -> Dict[str, Method]:
    """Every method but the oracle, by name."""
    statistics = {name: options[name] for name in _STATISTICS}
    fused = dict(options, type='SemLAGate')
    # shares out among all that are there, however many
    uniform = dict(fused, weighting='uniform', top_k=2**31)
    nearest = dict(fused, top_k=1)
    methods = {
        board.BASE: Method(dict(statistics, type='NoExpertGate')),
        board.NEAREST: Method(nearest),
        board.UNIFORM: Method(uniform),
        board.FUSED: Method(fused),
        board.UNIFORM_ADAPTERS: Method(uniform, 'adapters'),
        board.FUSED_ADAPTERS: Method(fused, 'adapters'),
        board.UNIFORM_OUTPUTS: Method(uniform, 'logits'),
        board.FUSED_OUTPUTS: Method(fused, 'logits')
    }
    for name in board.POLICIES:
        # experts of a flagged image predict one by one
        methods[name] = Method(nearest, 'logits', name.split('_')[-1])
    for tau in taus:
        methods[f'{board.TAU}{tau:g}'] = Method(
            dict(fused, tau=tau), 'adapters')
    return methods


def families(tasks: Sequence[Task]) -> Dict[str, Tuple[str, ...]]:
    """By task, the tasks of its origin, itself included.

    Tasks that name the same ``family`` are one. Of the others, those are one
    whose images are read by one class of dataset below one ``data_root``:
    the conditions of ACDC, or two sensors of one drive.
    """
    origins = {
        task.name:
        str(('family',
             task.family) if task.family else _origin(task.val_dataset))
        for task in tasks
    }
    return {
        name: tuple(n for n in origins if origins[n] == origin)
        for name, origin in origins.items()
    }


def _origin(config: Mapping[str, Any]) -> Any:
    kind = config.get('type', '')
    kind = kind if isinstance(kind, str) else kind.__name__
    if 'datasets' in config:
        return [kind, *sorted(map(str, map(_origin, config['datasets'])))]
    if kind in _WRAPPERS and 'dataset' in config:
        return _origin(config['dataset'])
    return [kind, str(config.get('data_root', ''))]


class Study:
    """A finished run, opened to predict without some of its experts.

    Args:
        work_dir (Path): Of the run.
        results (StreamResults): Of the run.
        out (Path): Gets a log of what was loaded, and finished cells.
        config (Config, optional): As in :func:`leave_one_out`.
        options (Mapping[str, Any]): Override the config.
        gate (Mapping[str, Any]): See :func:`gate_options`.
        taus (Sequence[float]): Further temperatures.

    Raises:
        ValueError: If the run has no experts, or its data are not there.
    """

    def __init__(self, work_dir: Path, results: StreamResults, out: Path,
                 config: Optional[Config], options: Mapping[str, Any],
                 gate: Mapping[str, Any], taus: Sequence[float]) -> None:
        self.seed = results.seed
        self.cells = out / 'cells' / f'seed_{self.seed}'
        self.experts = open_library(work_dir).open(results.tasks)
        # the last one's config knows all tasks
        cfg = copy.deepcopy(config) if config else library_config(
            self.experts[::-1])
        cfg.merge_from_dict(dict(options))
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=self.seed)
        cfg.work_dir = str(out / 'logs')
        cfg.log_level = 'WARNING'
        # a Runner's log and hub go by this name
        cfg.experiment_name = f'leave_one_out_seed_{self.seed}'
        self.runner = Runner.from_cfg(cfg)
        self.loop: IncrementalTaskLoop = self.runner.train_loop
        if not isinstance(self.loop.model, ExpertSegmentor):
            raise ValueError(f'{work_dir} was learned by '
                             f'{type(self.loop.model).__name__}, which has no '
                             'experts to leave out')
        self.model: ExpertSegmentor = self.loop.model
        self.tasks: List[Task] = self.loop.tasks
        self.loop.load(work_dir)
        self.model.eval()
        self.families = families(self.tasks)
        self.options = gate_options(self.model.gate, gate)
        self.methods = study_methods(self.options, taus)
        self._taus = [m for m in self.methods if m.startswith(board.TAU)]
        self._embedded: Dict[str, Tensor] = {}

    def run(self, log: Log) -> Tuple[List[Score], List[Dict[str, Any]]]:
        """Scores and image lines of all targets; finished ones are kept."""
        scores: List[Score] = []
        images: List[Dict[str, Any]] = []
        for task in self.tasks:
            found, lines = self._target(task, log)
            scores += found
            images += lines
        return scores, images

    def leaks(self, removed: Removed) -> List[Leak]:
        """The ways in which removed experts are still there."""
        found = []
        first = self.tasks[0].name
        if (removed and first in removed
                and self.model.backbone.base_training == 'first_task'):
            found.append(Leak(removed, 'base', (first, )))
        heirs = set().union(*(children(name, self.model.origins)
                              for name in removed))
        through = tuple(task.name for task in self.tasks
                        if task.name in heirs and task.name not in removed)
        return found + [Leak(removed, 'experts', through)] * bool(through)

    def _target(self, task: Task,
                log: Log) -> Tuple[List[Score], List[Dict[str, Any]]]:
        """Score one task in every cell that is not finished yet."""
        wanted = self._wanted(task)
        path, settings = self.cells / f'{task.name}.json', self._settings()
        kept: Dict[str, Any] = {}
        if path.exists():
            document = read_json(path)
            if document['settings'] == settings:
                kept = document['cells']
        missing = [cell for cell in wanted if _key(cell) not in kept]
        if missing:
            log(f'seed {self.seed}, {task.name}: {len(missing)} of '
                f'{len(wanted)} cells')
            for cell, result in zip(missing, self._evaluate(task, missing)):
                kept[_key(cell)] = result
            write_json(path,
                       write_numbers(dict(settings=settings, cells=kept)))
            kept = read_json(path)['cells']
        chosen = [kept[_key(cell)] for cell in wanted]
        return [Score.from_document(cell['score']) for cell in chosen
                ], [line for cell in chosen for line in cell['images']]

    def _wanted(self, task: Task) -> List[Tuple[Removed, str]]:
        """Removed experts and methods of a target, each pair once."""
        wanted: Dict[Tuple[Removed, str], None] = {}
        for scope, removed in removals(task.name,
                                       self.families[task.name]).items():
            if len(removed) == len(self.tasks):
                continue
            names = methods_of(scope)
            for name in names if scope == 'none' else (*names, *self._taus):
                wanted[removed, name] = None
        return list(wanted)

    def _settings(self) -> str:
        """Digest of what every cell's score depends on."""
        cfg = self.runner.cfg
        values = dict(
            # another version may score otherwise: they are not mixed
            commit=commit(),
            options=self.options,
            model={
                k: v
                for k, v in cfg.model.items() if k not in _IDLE
            },
            tasks=[[t.name, t.train_dataset, t.val_dataset]
                   for t in self.tasks],
            images=self.loop.max_prototype_images,
            base=self.experts[0].base_fingerprint,
            experts=[[e.name, e.checksums] for e in self.experts])
        text = json.dumps(values, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _gates(self, removed: Removed,
               names: Iterable[str]) -> Dict[str, BaseGate]:
        """A gate per method that has never known the removed tasks.

        Also covariance and calibration of the flag are those of the others.
        """
        there = [t for t in self.tasks if t.name not in removed]
        fitted: Dict[str, BaseGate] = {}
        for name in names:
            gate = TASK_UTILS.build(dict(self.methods[name].gate))
            for task in there:
                if fitted:
                    # one set of statistics serves every kind of weights
                    first = next(iter(fitted.values()))
                    gate.load_state(task.name, first.state(task.name))
                else:
                    gate.fit(task.name, self._embeddings(task, gate))
            fitted[name] = gate
        return fitted

    def _embeddings(self, task: Task, gate: BaseGate) -> Tensor:
        """Of the training images of a task, embedded once."""
        if task.name not in self._embedded:
            loader = self.loop.data.prototype_loader(
                self.runner, task, self.loop.val_dataloader,
                self.loop.max_prototype_images)
            self._embedded[task.name] = self.model.embed_images(
                loader, gate.num_views)
        return self._embedded[task.name]

    def _evaluate(
            self, task: Task,
            wanted: Sequence[Tuple[Removed, str]]) -> List[Dict[str, Any]]:
        """Score a task in some cells, in one pass over its images.

        Images are embedded once, and cells that come to the same mixture for
        an image share its prediction.
        """
        gates = {
            removed:
            self._gates(removed, [
                name for other, name in wanted
                if other == removed and name != board.ORACLE
            ])
            for removed in dict.fromkeys(removed for removed, _ in wanted)
        }
        image_log = ImageLog(task, self.tasks[-1].name, self.loop.data_root)
        tallies = [_Tally(task, cell, self.seed, image_log) for cell in wanted]
        loader = self.loop.data.val_loader(self.runner, task,
                                           self.loop.val_dataloader)
        for batch in loader:
            embeddings = self.model.embed_views(batch)
            predictions = _Predictions(self.model, task, batch)
            own = [
                predictions.of(i, {task.name: 1.0}, task.name, 'weights')
                for i in range(len(embeddings))
            ]
            for (removed, name), tally in zip(wanted, tallies):
                if name == board.ORACLE:
                    tally.add_oracle(batch, own)
                    continue
                method = self.methods[name]
                routing = apply_ood_policy(
                    gates[removed][name].route(embeddings,
                                               [None] * len(embeddings)),
                    method.ood_policy)
                for index, sample in enumerate(batch['data_samples']):
                    tally.add(routing, index, sample,
                              predictions.routed(routing, index, method),
                              own[index])
        return [tally.result() for tally in tallies]


def _key(cell: Tuple[Removed, str]) -> str:
    removed, name = cell
    return f'{name} without {"+".join(removed)}'


class _Predictions:
    """Counts of a batch's images, each distinct prediction made once."""

    def __init__(self, model: ExpertSegmentor, task: Task,
                 batch: Mapping[str, Any]) -> None:
        self._model, self._task = model, task
        self._batch = model.data_preprocessor(dict(batch), False)
        self._known: Dict[Any, DomainIoU] = {}

    def routed(self, routing: Routing, index: int,
               method: Method) -> Optional[DomainIoU]:
        """As a routing says; None for an image without a prediction."""
        if routing.abstains is not None and routing.abstains[index]:
            return None
        mixture = {
            name: round(weight, _DIGITS)
            for name, weight in routing.mixture(index).items()
        }
        if not mixture:
            head = self._model.base_head(routing, index)
        elif method.fusion == 'adapters':
            distances = dict(
                zip(routing.expert_names, routing.distances[index].tolist()))
            head = min(mixture, key=lambda name: distances[name])
        else:
            head = heaviest(mixture)
        return self.of(index, mixture, head,
                       method.fusion if len(mixture) > 1 else 'weights')

    @torch.no_grad()
    def of(self, index: int, mixture: Mapping[str, float], head: str,
           fusion: str) -> DomainIoU:
        """Of one image with one mixture of experts."""
        key = (index, fusion, head, *sorted(mixture.items()))
        if key not in self._known:
            model, image = self._model, self._batch['inputs'][[index]]
            sample = copy.copy(self._batch['data_samples'][index])
            with self._vocabulary():
                model.predict_mixture(
                    image, [sample],
                    mixture,
                    head,
                    late=fusion == 'logits',
                    fuse_heads=fusion != 'adapters')
                classes = sample.get('classes') or model.heads.labels(
                    head).classes
            counts = DomainIoU(self._task.classes)
            maps = (
                data.data.squeeze(0).cpu().numpy()
                for data in (sample.pred_sem_seg, sample.gt_sem_seg))
            predicted, truth = maps
            counts.update(predicted, classes, truth)
            self._known[key] = counts
        return self._known[key]

    @contextlib.contextmanager
    def _vocabulary(self) -> Iterator[None]:
        """An open-vocabulary model predicts in the target's classes."""
        using = getattr(self._model, 'using_vocabulary', None)
        if using is None:
            yield
            return
        with using(self._task.classes, self._task.palette):
            yield


class _Tally:
    """Adds up the images of a cell."""

    def __init__(self, task: Task, cell: Tuple[Removed, str], seed: int,
                 image_log: ImageLog) -> None:
        self._task, (self._removed, self._name) = task, cell
        self._seed, self._log = seed, image_log
        self._total = DomainIoU(task.classes)
        self._lines: List[Dict[str, Any]] = []

    def add_oracle(self, batch: Mapping[str, Any],
                   own: Sequence[DomainIoU]) -> None:
        """Images of a batch, each with its own expert."""
        name = self._task.name
        routing = Routing((name, ), torch.ones(len(own), 1),
                          torch.full((len(own), 1), math.nan),
                          torch.zeros(len(own), dtype=torch.bool))
        for index, sample in enumerate(batch['data_samples']):
            self.add(routing, index, sample, own[index], own[index])

    def add(self, routing: Routing, index: int, sample: Any,
            counts: Optional[DomainIoU], own: DomainIoU) -> None:
        """One image of a batch; without counts it got no prediction."""
        routed = counts or DomainIoU(self._task.classes)
        self._total.merge(routed)
        mixture = routing.mixture(index)
        distances = routing.distances[index].tolist()
        line = self._log.entry(
            dict(
                img_path=sample.get('img_path'),
                expert=routing.top_expert(index) if mixture else None,
                mixture=mixture,
                distances=dict(zip(routing.expert_names, distances)),
                ood=bool(routing.ood[index])), routed, own)
        measured = routing.ood_score
        self._lines.append(
            dict(
                line.to_document(),
                seed=self._seed,
                method=self._name,
                removed=list(self._removed),
                abstained=counts is None,
                ood_score=None if measured is None else
                float(f'{float(measured[index]):.6g}')))

    def result(self) -> Dict[str, Any]:
        """Score and image lines, as JSON values."""
        lines = self._lines
        score = Score(self._task.name, self._removed, self._name, len(lines),
                      sum(not line['abstained'] for line in lines),
                      sum(line['ood'] for line in lines), self._total.miou())
        return dict(score=asdict(score), images=lines)
