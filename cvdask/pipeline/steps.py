"""Which steps are there, what does each need, and what does it make?

A step is one stage for one sample, one group, or all of them. :func:`lay_out` puts them in order,
a stage for all samples before the next one. Of a run's folder::

    OUT/samples/NAME.zarr            volumes of samples (below ``store``, where that is given)
        models/unet.keras            the network of train-unet
        models/gan-GROUP.keras       one generator for each group
        scores/NAME.json, .png       what evaluate found
        generated/GROUP.zarr         ensembles (below ``store``)
        distances/GROUP.json         what distance found
        comparison/                  tables, figures and report.html

Volumes that were there before get label images and tables inside of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cvdask
from cvdask.pipeline.config import Config, Sample
from cvdask.pipeline.schema import STAGES
from cvdask.pipeline.scores import keep_distance, keep_scores
from cvdask.pipeline.things import Thing
from cvdask.volume.ensemble import member_names
from cvdask.volume.verify import Verification

TRUTH, ANNOTATIONS, CLASSES, ORDERED = "truth", "annotations", "classes", "ordered"
OBJECTS, DESCRIPTORS, DENSITY = "objects.parquet", "descriptors.parquet", "density.zarr"
# What is measured of generated volumes as of real ones.
MEASURING = ("measure", "density", "descriptors")


@dataclass
class Way:
    """How a step is taken, and what it says.

    Parameters
    ----------
    client, workers
        Where blocks run.
    overwrite : bool
        Make anew what was made for other inputs or options.
    dry_run : bool
    tell : callable
        Takes a line about the progress of a training.
    redone : bool
        Whether something was, or would be, made anew.
    """

    client: Any
    workers: int | None
    overwrite: bool
    dry_run: bool
    tell: Callable[[str], None]
    redone: bool = False

    def blocks(self, function: Callable[..., Any], *given: Any, **options: Any) -> Any:
        """Call a stage that works on blocks."""
        options = {**options, "client": self.client, "workers": self.workers}
        return self.call(function, *given, **options)

    def training(
        self, function: Callable[..., Any], line: Callable[[Mapping[str, Any]], str], *given: Any,
        out: Thing, **options: Any,
    ) -> Any:  # fmt: skip
        """Call a training. One that is complete is looked at by itself, also in a dry run."""

        def report(record: Mapping[str, Any]) -> None:
            self.tell(line(record))

        dry_run = self.dry_run and not out.is_complete()
        if self.dry_run and not dry_run and self.overwrite:
            # A call that overwrites would train.
            try:
                return function(*given, out=out.url, callback=report, **options)
            except FileExistsError:
                self.redone = True
                return function(*given, out=out.url, dry_run=True, **options)
        return self.call(function, *given, out=out.url, callback=report, dry_run=dry_run, **options)

    def call(self, function: Callable[..., Any], *given: Any, **options: Any) -> Any:
        """Call a stage, and once more to overwrite where it refuses what it finds."""
        options = {"dry_run": self.dry_run, **options}
        try:
            return function(*given, overwrite=False, **options)
        except FileExistsError:
            if not self.overwrite:
                raise
            self.redone = True
            return function(*given, overwrite=True, **options)


@dataclass(frozen=True)
class Step:
    """One stage of one sample, one group, or all of them.

    Parameters
    ----------
    stage : str
    subject : str
        Name of the sample or the group; empty for all.
    act : callable
        Takes a :class:`Way`; with ``dry_run`` returns what the stage's plan is.
    needs, makes : sequence of Thing
    """

    stage: str
    subject: str
    act: Callable[[Way], Any]
    needs: Sequence[Thing]
    makes: Sequence[Thing]

    def __str__(self) -> str:
        return f"{self.stage} {self.subject}".rstrip()

    def is_complete(self) -> bool:
        """Tell whether all that it makes is there."""
        return all(thing.is_complete() for thing in self.makes)


def lay_out(config: Config) -> list[Step]:
    """Return all steps of a config, in the order in which they are taken."""
    steps: list[Step] = []
    for stage in STAGES:
        steps += _STEPS[stage](config)
    return steps


# ---------------------------------------------------------------------------------------------
# Where things lie


def model_of(config: Config) -> str:
    """Return where the segmentation network lies."""
    given = config.stages.get("segment", {}).get("model")
    return str(given or f"{config.out}/models/unet.keras")


def gan_of(config: Config, group: str) -> str:
    """Return where the generator of a group lies."""
    given = config.stages.get("generate", {}).get("model")
    return str(given or f"{config.out}/models/gan-{group}.keras")


def ensemble_of(config: Config, group: str) -> str:
    """Return where the generated volumes of a group lie."""
    return f"{config.store.rstrip('/')}/generated/{group}.zarr"


def scores_of(config: Config, sample: Sample) -> str:
    """Return where the scores of a sample lie."""
    return f"{config.out}/scores/{sample.name}.json"


def distance_of(config: Config, group: str) -> str:
    """Return where the distance of a group's generated volumes lies."""
    return f"{config.out}/distances/{group}.json"


def comparison_of(config: Config) -> str:
    """Return the folder of the comparison."""
    return f"{config.out}/comparison"


def generated_groups(config: Config) -> dict[str, list[Sample]]:
    """Return the groups that get generated volumes, with the samples these are to resemble."""
    if "generate" not in config.stages:
        return {}
    learned = config.chosen("train-gan") if "train-gan" in config.stages else config.samples
    groups: dict[str, list[Sample]] = {}
    for sample in learned:
        groups.setdefault(sample.group, []).append(sample)
    return groups


def members_of(config: Config, group: str) -> list[str]:
    """Return where the generated volumes of a group lie, one by one."""
    n_volumes = config.stages["generate"].get("volumes", 1)
    url = ensemble_of(config, group)
    return [f"{url}/{name}" for name in member_names(n_volumes)]


def generated_labels(config: Config) -> str:
    """Return the label image of generated volumes that is measured and compared."""
    if "order" in config.stages:
        return str(config.stages["order"].get("name", ORDERED))
    return CLASSES


def measured_labels(config: Config) -> str:
    """Return the label image of real volumes that is compared."""
    compared = config.stages.get("compare", {}).get("labels")
    return str(compared or config.stages.get("measure", {}).get("labels", CLASSES))


def annotated(config: Config, stage: str, labels: str) -> tuple[Sample, ...]:
    """Return the samples of a stage: those it names, else those that have, or will have, a label.

    A volume that is there is looked at; of others the config tells.
    """
    if "samples" in config.stages[stage]:
        return config.chosen(stage)
    return tuple(sample for sample in config.samples if _will_have(sample, labels))


def _will_have(sample: Sample, labels: str) -> bool:
    if sample.kind == "phantom":
        return labels == TRUTH
    if sample.kind == "source":
        has = sample.options.get("label_name", ANNOTATIONS)
        return "labels" in sample.options and has == labels
    return Thing("labels", sample.url, labels).exists()


# ---------------------------------------------------------------------------------------------
# From files to classes


def _ingest(config: Config) -> Iterator[Step]:
    for sample in config.samples:
        if sample.kind == "volume":
            continue
        makes = [Thing("volume", sample.url)]
        if sample.kind == "phantom":
            makes.append(Thing("labels", sample.url, TRUTH))
        elif "labels" in sample.options:
            name = sample.options.get("label_name", ANNOTATIONS)
            makes.append(Thing("labels", sample.url, name))
        files = [Thing("files", sample.origin)] if sample.kind == "source" else []
        if "labels" in sample.options:
            files.append(Thing("files", sample.options["labels"]))
        yield Step("ingest", sample.name, partial(_take_in, sample), files, makes)


def _take_in(sample: Sample, way: Way) -> Any:
    if sample.kind == "phantom":
        return way.blocks(cvdask.phantom, sample.url, kind=sample.origin, **sample.options)
    done = way.blocks(cvdask.ingest, sample.origin, sample.url, **sample.options)
    found = getattr(done, "verification", None)
    if isinstance(found, Verification) and not found.ok:
        faults = "; ".join(f"{where}: {reason}" for where, reason in found.faults.items())
        raise OSError(
            f"what was read back of {sample.name} is not what was read from its files: {faults}. "
            f"Run again with --overwrite"
        )
    return done


def _train_unet(config: Config) -> Iterator[Step]:
    options = config.options("train-unet")
    labels = options.get("labels", ANNOTATIONS)
    samples = annotated(config, "train-unet", labels)
    if not samples:
        raise ValueError(
            f"{config.path}: [train-unet] finds no sample with the label image {labels!r}. Name "
            f"them: samples, or give labels to a [[sample]]"
        )
    out = Thing("model", f"{config.out}/models/unet.keras")
    urls = [sample.url for sample in samples]

    def act(way: Way) -> Any:
        return way.training(cvdask.train_unet, _epoch_line, urls, out=out, **options)

    yield Step("train-unet", "", act, [Thing("labels", url, labels) for url in urls], [out])


def _segment(config: Config) -> Iterator[Step]:
    options = config.options("segment", "model")
    model = Thing("model", model_of(config))
    for sample in config.chosen("segment"):

        def act(way: Way, url: str = sample.url) -> Any:
            return way.blocks(cvdask.segment, url, model.url, **options)

        needs = [Thing("volume", sample.url), model]
        makes = [Thing("labels", sample.url, options.get("name", CLASSES))]
        yield Step("segment", sample.name, act, needs, makes)


def _evaluate(config: Config) -> Iterator[Step]:
    options = config.options("evaluate")
    truth = options.get("truth", ANNOTATIONS)
    for sample in annotated(config, "evaluate", truth):

        def act(way: Way, one: Sample = sample) -> Any:
            out = scores_of(config, one)
            return way.blocks(keep_scores, one.url, out, options)

        names = (options.get("prediction", CLASSES), truth)
        needs = [Thing("labels", sample.url, name) for name in names]
        yield Step("evaluate", sample.name, act, needs, [Thing("file", scores_of(config, sample))])


# ---------------------------------------------------------------------------------------------
# From classes to tables


def _label(config: Config) -> Iterator[Step]:
    options = config.options("label", "class_")
    wanted = config.stages["label"]["class_"]
    classes = wanted if isinstance(wanted, list) else [wanted]
    for sample in config.chosen("label"):

        def act(way: Way, url: str = sample.url) -> Any:
            done = [way.blocks(cvdask.label, url, class_=one, **options) for one in classes]
            return [plan for plans in done for plan in plans] if way.dry_run else done

        needs = [Thing("labels", sample.url, options.get("labels", CLASSES))]
        makes = [Thing("labels", sample.url, options.get("name", str(one))) for one in classes]
        yield Step("label", sample.name, act, needs, makes)


def _measuring(stage: str) -> Callable[[Config], Iterator[Step]]:
    def steps(config: Config) -> Iterator[Step]:
        options = config.options(stage)
        labels = options.get("labels", CLASSES)
        for sample in config.chosen(stage):

            def act(way: Way, url: str = sample.url) -> Any:
                return way.blocks(getattr(cvdask, stage), url, **options)

            needs = [Thing("labels", sample.url, labels)]
            yield Step(stage, sample.name, act, needs, [_table(sample.url, stage)])

    return steps


def _table(url: str, stage: str) -> Thing:
    names = {"measure": OBJECTS, "descriptors": DESCRIPTORS, "density": DENSITY}
    return Thing("table", url, f"tables/{names[stage]}")


# ---------------------------------------------------------------------------------------------
# From classes to generated volumes


def _train_gan(config: Config) -> Iterator[Step]:
    options = config.options("train-gan")
    labels = options.get("labels", CLASSES)
    groups: dict[str, list[Sample]] = {}
    for sample in config.chosen("train-gan"):
        groups.setdefault(sample.group, []).append(sample)
    for group, samples in groups.items():
        out = Thing("model", f"{config.out}/models/gan-{group}.keras")
        urls = [sample.url for sample in samples]

        def act(way: Way, urls: Sequence[str] = urls, out: Thing = out) -> Any:
            return way.training(cvdask.train_gan, _report_line, urls, out=out, **options)

        needs = [Thing("labels", url, labels) for url in urls]
        yield Step("train-gan", group, act, needs, [out])


def _generate(config: Config) -> Iterator[Step]:
    options = config.options("generate", "model")
    for group in generated_groups(config):

        def act(way: Way, group: str = group) -> Any:
            return way.blocks(
                cvdask.generate, gan_of(config, group), ensemble_of(config, group), **options
            )

        needs = [Thing("model", gan_of(config, group))]
        yield Step("generate", group, act, needs, [Thing("ensemble", ensemble_of(config, group))])


def _order(config: Config) -> Iterator[Step]:
    options = config.options("order")
    real_labels = config.stages.get("train-gan", {}).get("labels", CLASSES)
    for group, samples in generated_groups(config).items():
        # The real stack beside which the order is told; any of the group will do.
        real = samples[0].url

        def act(way: Way, group: str = group, real: str = real) -> Any:
            url = ensemble_of(config, group)
            return way.blocks(cvdask.order, url, real=real, real_labels=real_labels, **options)

        needs = [Thing("ensemble", ensemble_of(config, group)), Thing("labels", real, real_labels)]
        makes = [
            Thing("labels", url, options.get("name", ORDERED)) for url in members_of(config, group)
        ]
        yield Step("order", group, act, needs, makes)


def _measure_generated(config: Config) -> Iterator[Step]:
    stages = [stage for stage in MEASURING if stage in config.stages]
    labels = generated_labels(config)
    for group in generated_groups(config) if stages else ():
        members = members_of(config, group)

        def act(way: Way, members: Sequence[str] = members) -> Any:
            # Members are alike: the plan of one tells those of all.
            urls = members[:1] if way.dry_run else members
            return [plan for url in urls for plan in _measure_member(way, config, url, labels)]

        needs = [
            Thing("ensemble", ensemble_of(config, group)),
            *(Thing("labels", url, labels) for url in members),
        ]
        makes = [_table(url, stage) for url in members for stage in stages]
        yield Step("measure-generated", group, act, needs, makes)


def _measure_member(way: Way, config: Config, url: str, labels: str) -> Iterator[Any]:
    """Measure a generated volume as the real ones, as far as it has what they have."""
    for stage in MEASURING:
        if stage not in config.stages:
            continue
        # Boxes and grey values are of real volumes.
        options = {**config.options(stage, "box", "intensity"), "labels": labels}
        done = way.blocks(getattr(cvdask, stage), url, **options)
        yield from done if isinstance(done, list) else ()


def _distance(config: Config) -> Iterator[Step]:
    learned = config.stages.get("train-gan", {})
    options = {
        **{key: learned[key] for key in ("labels", "z_range") if key in learned},
        "generated_labels": generated_labels(config),
        **config.options("distance"),
    }
    for group, samples in generated_groups(config).items():
        urls = [sample.url for sample in samples]

        def act(way: Way, group: str = group, urls: Sequence[str] = urls) -> Any:
            out = distance_of(config, group)
            return way.call(keep_distance, ensemble_of(config, group), urls, out, options)

        labels = options.get("labels", CLASSES)
        needs = [
            Thing("ensemble", ensemble_of(config, group)),
            *(Thing("labels", url, labels) for url in urls),
            *(Thing("labels", u, generated_labels(config)) for u in members_of(config, group)),
        ]
        yield Step("distance", group, act, needs, [Thing("file", distance_of(config, group))])


# ---------------------------------------------------------------------------------------------
# From tables to a page


def _compare(config: Config) -> Iterator[Step]:
    groups: dict[str, list[str]] = {}
    labels: dict[str, str] = {}
    for sample in config.chosen("compare"):
        groups.setdefault(sample.group, []).append(sample.url)
        labels[sample.group] = measured_labels(config)
    needs = [
        _table(url, stage)
        for urls in groups.values()
        for url in urls
        for stage in MEASURING
        if stage == "measure" or stage in config.stages
    ]
    for group in generated_groups(config):
        name = f"{group} generated"
        groups[name] = [ensemble_of(config, group)]
        labels[name] = generated_labels(config)
        needs += [_table(url, "measure") for url in members_of(config, group)]
    scores: list[str] = []
    if "evaluate" in config.stages:
        truth = config.stages["evaluate"].get("truth", ANNOTATIONS)
        scores = [scores_of(config, one) for one in annotated(config, "evaluate", truth)]
        needs += [Thing("file", path) for path in scores]
    options = config.options("compare", "labels")
    out = comparison_of(config)

    def act(way: Way) -> Any:
        return way.blocks(
            cvdask.compare, out=out, groups=groups, labels=labels, scores=scores, **options
        )

    yield Step("compare", "", act, needs, [Thing("folder", out)])


def _report(config: Config) -> Iterator[Step]:
    out = Thing("file", f"{comparison_of(config)}/report.html")

    def act(way: Way) -> Any:
        # Quick, and written anew each time: equal comparisons give equal pages.
        return [] if way.dry_run else cvdask.report(comparison_of(config), **options)

    options = config.options("report")
    yield Step("report", "", act, [Thing("folder", comparison_of(config))], [out])


def _if_asked(
    stage: str, steps: Callable[[Config], Iterator[Step]]
) -> Callable[[Config], Iterator[Step]]:
    return lambda config: steps(config) if stage in config.stages else iter(())


_STEPS: Mapping[str, Callable[[Config], Iterator[Step]]] = {
    "ingest": _ingest,
    "measure-generated": _measure_generated,
} | {
    stage: _if_asked(stage, steps)
    for stage, steps in {
        "train-unet": _train_unet,
        "segment": _segment,
        "evaluate": _evaluate,
        "label": _label,
        **{stage: _measuring(stage) for stage in MEASURING},
        "train-gan": _train_gan,
        "generate": _generate,
        "order": _order,
        "distance": _distance,
        "compare": _compare,
        "report": _report,
    }.items()
}


# ---------------------------------------------------------------------------------------------
# What trainings say


def _epoch_line(record: Mapping[str, Any]) -> str:
    score = "–" if record["mean_f1"] is None else f"{record['mean_f1']:.3f}"
    return (
        f"fold {record['fold']}, epoch {record['epoch']}: loss {record['loss']:.3f}, mean F1 "
        f"{score}, {record['seconds']:.0f} s"
    )


def _report_line(record: Mapping[str, Any]) -> str:
    distance, floor = record["distance"], record["floor"]
    told = "distance –" if distance is None else f"distance {distance:.3g}"
    if distance is not None and floor:
        told += f", {distance / floor:.1f} × the floor"
    return f"{record['kimg']:g} kimg: {told}, {record['seconds']:.0f} s"
