"""The content of the report, section by section. :mod:`results.page` writes it to files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from results import aggregates, curve_figure, details, figures, headline
from results.panels import Findings, Panel
from results.published import training_times
from results.scores import Conditions
from results.shown import Shown
from results.style import save
from results.videos import Allowance, Video, best_run

ENOUGH = 10
"""The smallest number of runs for which their distribution is drawn."""
MADE = "files.json"
"""A list of the files that the report wrote, so that the next report can remove them."""


@dataclass
class Drawn:
    """A figure: its caption, its SVG for the page, and its PNG for other uses."""

    caption: str
    svg: str
    png: Path
    folded: bool = False


@dataclass
class Side:
    """Videos shown side by side under one heading; ``random`` is an mp4 of random play."""

    title: str
    videos: list[Video]
    random: Path | None = None


@dataclass
class Section:
    """A heading and the content below it, in order."""

    title: str
    text: str = ""
    blocks: list[Shown | Drawn | Side] = field(default_factory=list)


class Report:
    """The whole report, with published tables for comparison.

    Args:
        findings: what was read.
        output: the folder of figures and CSV tables. Those of an earlier report are removed from
            it.
        reps: the number of bootstrap samples.
        random_videos: the folder with ``<task>.mp4`` of random play.

    Attributes:
        sections: in order.
        problems: the problems of the findings, and what the aggregates had to leave out.
    """

    def __init__(
        self, findings: Findings, output: Path, reps: int, random_videos: Path | None = None
    ) -> None:
        self.output, self._reps, self._findings = output, reps, findings
        self._random_videos = random_videos
        self.problems = findings.problems
        self.sections: list[Section] = []
        self._more: list[Shown | Drawn | Side] = []  # the content of the details
        self.written: list[str] = [MADE]
        output.mkdir(parents=True, exist_ok=True)
        remove_earlier(output)
        for panel in findings.panels:
            self._headline(panel)
        self._curves([panel for panel in findings.panels if panel.curves])
        if findings.videos:
            self.sections.append(self._videos())
        self.sections.append(self._details())
        self.problems[:] = dict.fromkeys(self.problems)

    def close(self) -> None:
        """Record which files belong to the report."""
        names = sorted(set(self.written))
        (self.output / MADE).write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")

    def path(self, name: str) -> Path:
        """The path at which the report writes the file ``name``."""
        self.written.append(name)
        return self.output / name

    def _csv(self, name: str, table: pd.DataFrame) -> None:
        table.to_csv(self.path(f"{name}.csv"), index=False, float_format="%.10g")

    def _drawn(self, name: str, caption: str, figure: Figure) -> Drawn:
        png, _ = self.path(f"{name}.png"), self.path(f"{name}.pdf")
        return Drawn(caption, save(figure, self.output / name), png)

    def _headline(self, panel: Panel) -> None:
        if not panel.results:
            return
        findings = self._findings
        section = Section(panel.title, headline.summary(panel, findings))
        caption = (
            "Ours: a large dot is the mean over seeds, small dots are seeds, the line goes from "
            "the lowest to the highest. Grey: random play and published scores, with their "
            "protocols in the table"
        )
        figure = figures.draw_headline(panel, findings)
        section.blocks.append(self._drawn(f"{panel.key}_scores", caption, figure))
        self._csv(f"{panel.key}_scores", headline.headline_frame(panel, findings))
        section.blocks.append(headline.headline_table(panel, findings))
        self.sections.append(section)
        self._aggregates(panel, section)
        self._published_seeds(panel, section)

    def _aggregates(self, panel: Panel, section: Section) -> None:
        """Add one table and the figures of aggregates. They are made only over two tasks or
        more."""
        findings, unit = self._findings, self._findings.normalise.unit(panel.benchmark)
        ours = details.matrices(panel, findings)
        if not ours:
            return
        parts = details.budget_matrices(panel, findings)
        found = aggregates.intervals(ours | parts, self._reps)
        tasks = next(iter(ours.values())).tasks
        others = details.others_on(tasks, panel, findings)
        names = {findings.names[c]: findings.colours[c] for c in panel.results}
        colours = {label: colour for label in [*ours, *parts] for name, colour in names.items()
                   if label == name or label.startswith(name + details.PART)}  # fmt: skip
        published = others.melt(["method", "table"], var_name="metric")
        # With one seed there are no intervals; pandas must not guess the type of empty columns.
        filled = [part.dropna(axis="columns", how="all") for part in (found, published)]
        columns = dict.fromkeys([*found.columns, *published.columns])
        whole = pd.concat(filled).reindex(columns=list(columns))
        self._csv(f"{panel.key}_aggregates", whole)
        section.blocks.append(details.aggregates_table(found, others, tasks, unit))
        if found.low.notna().any():
            caption = "Aggregates; bars are 95 % intervals over seeds, diamonds published means"
            drawn = [t.title for t in panel.tables[:1]] + ["play"]
            shown = others[others.table.isin(drawn)]
            figure = figures.draw_aggregates(found, shown, colours, unit)
            section.blocks.append(self._drawn(f"{panel.key}_aggregates", caption, figure))
        if pairs := details.pairs(panel, ours, findings):
            better = aggregates.improvement(pairs, max(100, self._reps // 4))
            self._csv(f"{panel.key}_improvement", better)
            self._more.append(details.improvement_table(better))
        if sum(matrix.values.size for matrix in ours.values()) < ENOUGH:
            return
        profile = aggregates.profiles(ours, self._reps)
        self._csv(f"{panel.key}_profiles", profile)
        caption = (
            f"{panel.title}, performance profiles: the share of runs above a score, with 95 % bands"
        )
        figure = figures.draw_profiles(profile, colours, unit)
        self._more.append(self._drawn(f"{panel.key}_profiles", caption, figure))

    def _published_seeds(self, panel: Panel, section: Section) -> None:
        """Add the aggregates of published methods whose single runs are known, with intervals; the
        scores by task go into the details."""
        if not any(table.seeds for table in panel.tables):
            return
        found = details.seeds_frame(panel, self._findings, self._reps)
        self._csv(f"{panel.key}_published_seeds", found)
        unit = self._findings.normalise.unit(panel.benchmark)
        for method, part in found.groupby("method", sort=False):
            whole, by_task = details.seeds_tables(str(method), part, panel.title, unit)
            section.blocks.append(whole)
            self._more.append(by_task)

    def _curves(self, panels: list[Panel]) -> None:
        section = Section("Learning curves")
        for panel in panels:
            figure = curve_figure.draw_curves(panel, self._findings)
            text = f"{panel.title}. {curve_figure.caption(panel)}"
            section.blocks.append(self._drawn(f"{panel.key}_curves", text, figure))
        self.sections += [section] if panels else []

    def _videos(self) -> Section:
        """The section of videos: one run of every setting and task, with the trained and the random
        agent side by side."""
        findings = self._findings
        known = {s.run: (s.task, s.conditions, s.seed) for s in findings.scores}
        for panel in findings.panels:
            for task, groups in panel.curves.items():
                for conditions, curves in groups.items():
                    known |= {c.run: (task, conditions, c.seed) for c in curves}
        groups: dict[tuple[str, Conditions | None], list[Video]] = {}
        for video in findings.videos:
            task, conditions, _ = known.get(video.run, (video.run, None, 0))
            groups.setdefault((task, conditions), []).append(video)
        section = Section("Videos", VIDEOS_TEXT)
        filmed, allowance = False, Allowance()
        for (task, conditions), videos in sorted(groups.items(), key=lambda g: g[0][0]):
            run = best_run(videos, {name: seed for name, (_, _, seed) in known.items()})
            shown = allowance.take([v for v in videos if v.run == run], findings.problems)
            name = f", {findings.names[conditions]}" if conditions else ""
            random = self._random_videos / f"{task}.mp4" if self._random_videos else None
            trained = any(video.kind == "evaluation" for video in shown)
            random = random if trained and random and random.is_file() else None
            filmed |= trained
            if shown:
                section.blocks.append(Side(f"{task}{name} (run {run})", shown, random))
        if not filmed:
            section.text += " " + NOT_FILMED
        return section

    def _details(self) -> Section:
        findings = self._findings
        section = Section("Details", details.other_evaluations(findings.others))
        section.blocks.append(details.settings_table(findings))
        section.blocks += [details.made_table(p, findings) for p in findings.panels if p.results]
        if findings.scores:
            self._csv("runs", details.runs_frame(findings))
            section.blocks.append(details.runs_table(findings))
        self._csv("published", details.published_frame(findings))
        section.blocks += [*self._more, *details.published_tables(findings)]
        section.blocks += details.times_tables(findings, training_times())
        for block in section.blocks:
            block.folded = True
        return section


VIDEOS_TEXT = (
    "One run of every setting and task. Sequences stand side by side with a gap between them; a "
    "magenta frame is around every picture that the world model imagined or predicted and no "
    "environment showed."
)
NOT_FILMED = (
    "No evaluated episode has been filmed: eval.py -run_name NAME -video 1 films one, and python "
    "-m results.random_play DOMAIN TASK --film an episode of random play to stand beside it."
)


def remove_earlier(output: Path) -> None:
    """Remove the files that an earlier report wrote into ``output``, and no others."""
    try:
        names = json.loads((output / MADE).read_text(encoding="utf-8"))
        names = [name for name in names if isinstance(name, str) and Path(name).name == name]
    except (OSError, ValueError, TypeError):
        return
    for name in names:
        (output / name).unlink(missing_ok=True)
