"""What the report says, section by section; :mod:`results.page` writes it down."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from pwm_core.errors import UserError
from results import aggregates, figures, tables
from results.curves import Curve, by_task, read_curves
from results.published import UNITS, Normaliser, Table, read_published, training_times
from results.scores import Score, Setting, by_setting, check_groups, read_scores
from results.videos import Video, find_videos

TITLES = {"atari": "Atari", "dmc": "DeepMind Control"}


@dataclass
class Section:
    """A heading, what to know, tables with captions, figures with captions."""

    title: str
    text: str = ""
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    figures: list[tuple[str, Path]] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)


@dataclass
class Findings:
    """What there is to report on.

    Attributes:
        groups: scores that may be averaged, by setting; ``names`` are the settings' letters.
        curves: of every run with metrics.
        videos: the newest of every run.
        problems: what was left out, is missing or does not compare, a line each.
    """

    groups: dict[Setting, list[Score]]
    names: dict[Setting, str]
    curves: list[Curve]
    videos: list[Video]
    problems: list[str]


def gather(scores: Path, runs: Path) -> Findings:
    """Read score files (``eval_result/``) and run folders (``ckpt/``).

    Raises:
        UserError: there is nothing to report on.
    """
    problems: list[str] = []
    found, curves = read_scores(scores, problems), read_curves(scores, runs, problems)
    if not found and not curves:
        why = f": {'; '.join(problems)}" if problems else ""
        raise UserError(f"no scores in {scores} and no metrics in {runs} to report on{why}")
    groups = by_setting(found)
    check_groups(groups, problems)
    videos = find_videos(scores, runs, problems)
    return Findings(groups, tables.letters(list(groups)), curves, videos, problems)


class Report:
    """All of it, beside published tables.

    Args:
        findings: what was read.
        output: where figures and CSV tables go.
        reps: bootstrap samples.

    Attributes:
        sections: in order.
        problems: those of the findings, and what the aggregates had to leave out.
    """

    def __init__(self, findings: Findings, output: Path, reps: int) -> None:
        self.output, self._reps = output, reps
        self.problems = list(findings.problems)
        self.sections: list[Section] = []
        self._groups, self._names = findings.groups, findings.names
        self._curves = findings.curves
        self._tables = read_published()
        self._normalise = Normaliser(self._tables)
        output.mkdir(parents=True, exist_ok=True)
        self._overview()
        for benchmark in TITLES:
            self._benchmark(benchmark)
        if findings.videos:
            self.sections.append(Section("Videos", videos=findings.videos))
        self._published()

    def _csv(self, name: str, table: pd.DataFrame) -> None:
        table.to_csv(self.output / f"{name}.csv", index=False, float_format="%.10g")

    def _overview(self) -> None:
        if not self._groups:
            return
        runs = tables.runs_table(self._groups, self._names, self._normalise)
        settings = tables.settings_table(self._groups, self._names)
        self._csv("settings", settings)
        self._csv("runs", runs)
        text = (
            "Scores are averaged only where protocol, config, frames, episodes and policy are the "
            "same. Each such setting has a letter, which stands for it below."
        )
        caption = "What a letter stands for; a run's score is its newest evaluated checkpoint's"
        self.sections.append(Section("Settings", text, [(caption, settings)]))

    def _benchmark(self, benchmark: str) -> None:
        groups = {s: v for s, v in self._groups.items() if s.conditions.benchmark == benchmark}
        curves = by_task(self._curves, benchmark)
        published = [table for table in self._tables if table.benchmark == benchmark]
        if groups:
            self._scores_section(benchmark, groups, published)
            self._aggregates_section(benchmark, groups, published)
        if curves:
            self._curves_section(benchmark, curves, groups, published)

    def _scores_section(
        self, benchmark: str, groups: dict[Setting, list[Score]], published: list[Table]
    ) -> None:
        section = Section(f"{TITLES[benchmark]}: scores")
        for setting, scores in groups.items():
            table = tables.seeds_table(setting, scores, self._normalise)
            letter = self._names[setting]
            self._csv(f"{benchmark}_scores_{letter}", table)
            caption = (
                f"Setting {letter}: {setting.label}. {tables.SCORE[benchmark].capitalize()}: mean "
                f"over {setting.episodes} episodes of each seed"
            )
            section.tables.append((caption, table))
        compared = tables.comparison_table(groups, self._names, published)
        compared = compared.reset_index(names="column")
        self._csv(f"{benchmark}_comparison", compared)
        caption = (
            "Beside published work. Each row says its protocol and frames; where those differ, "
            "scores do not compare"
        )
        section.tables.append((caption, compared))
        self.sections.append(section)

    def _aggregates_section(
        self, benchmark: str, groups: dict[Setting, list[Score]], published: list[Table]
    ) -> None:
        ours = tables.matrices(groups, self._names, self._normalise, self.problems)
        if not ours:
            return
        unit = UNITS[benchmark]
        section = Section(
            f"{TITLES[benchmark]}: aggregates",
            f"Over tasks and seeds, of the {unit}; 95 % intervals by stratified bootstrap "
            f"({self._reps:,} samples), none where there is a single run per task.",
        )
        found = aggregates.intervals(ours, self._reps)
        self._csv(f"{benchmark}_aggregates", found)
        section.tables.append((f"Aggregates of the {unit}", tables.aggregates_table(found)))
        self._figure(section, f"{benchmark}_aggregates", "Aggregates with 95 % intervals",
                     figures.draw_intervals(found, benchmark))  # fmt: skip
        profile = aggregates.profiles(ours, self._reps)
        self._csv(f"{benchmark}_profiles", profile)
        self._figure(section, f"{benchmark}_profiles", "Performance profiles with 95 % bands",
                     figures.draw_profiles(profile, benchmark))  # fmt: skip
        pairs = tables.pairs(groups, self._names, ours, published, self._normalise)
        if pairs:
            better = aggregates.improvement(pairs, max(100, self._reps // 4))
            self._csv(f"{benchmark}_improvement", better)
            caption = (
                "Probability of improvement, only between columns of one protocol and, within 5 %, "
                "one number of frames; published means count as a single run (a quarter of the "
                "bootstrap samples)"
            )
            section.tables.append((caption, better))
            self._figure(section, f"{benchmark}_improvement", caption,
                         figures.draw_improvement(better))  # fmt: skip
        same = tables.on_our_tasks(ours, published, self._normalise)
        self._csv(f"{benchmark}_same_tasks", same)
        caption = f"Mean and median of the {unit} on the tasks of each setting; protocols differ"
        section.tables.append((caption, same))
        self.sections.append(section)

    def _curves_section(
        self,
        benchmark: str,
        curves: dict[str, dict[tuple, list[Curve]]],
        groups: dict[Setting, list[Score]],
        published: list[Table],
    ) -> None:
        references = [t.references for t in published if len(t.references.columns)]
        scores = [score for group in groups.values() for score in group]
        drawn = figures.draw_curves(
            curves, scores, benchmark, pd.concat(references) if references else pd.DataFrame()
        )
        seeds = sorted({len(s) for groups in curves.values() for s in groups.values()})
        counts = " or ".join(map(str, seeds))
        section = Section(f"{TITLES[benchmark]}: learning curves")
        caption = (
            f"Returns of training episodes against frames (frame skip counted). Thick: mean over "
            f"{counts} seed{'s' * (seeds[-1] > 1)}; shaded: from the lowest to the highest seed; "
            "thin: every seed. Diamonds: evaluated checkpoints, whiskers from the lowest to the "
            "highest seed. Random and human scores where they are near"
        )
        self._figure(section, f"{benchmark}_curves", caption, drawn)
        self.sections.append(section)

    def _published(self) -> None:
        section = Section(
            "Published work",
            "Aggregates over all tasks of each table, from its means per task. IQM and optimality "
            "gap need the scores of single runs, which published tables do not hold.",
        )
        for benchmark in TITLES:
            published = [table for table in self._tables if table.benchmark == benchmark]
            table = tables.published_aggregates(published, self._normalise)
            self._csv(f"{benchmark}_published", table)
            unit = UNITS[benchmark]
            section.tables.append((f"{TITLES[benchmark]}, {unit}", table))
        section.tables.append(("Published training times, Atari 100k", training_times()))
        self.sections.append(section)

    def _figure(self, section: Section, name: str, caption: str, figure: figures.Figure) -> None:
        png, _ = figures.save(figure, self.output / name)
        section.figures.append((caption, png))
