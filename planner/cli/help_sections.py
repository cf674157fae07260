"""Help texts in sections: the commands of the group and the options of ``recommend``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

COMMAND_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Plan": ("recommend", "show", "explain", "report", "score", "export"),
    "Train and use": ("train", "evaluate", "classify"),
    "Compare and predict": ("grid", "predict", "profile", "models", "methods", "devices"),
    "Test a plan": ("check", "rehearse", "validate", "measure", "calibrate"),
    "Without fine-tuning": ("training-free", "features", "zero-shot"),
    "Serve": ("dashboard", "serve", "mcp", "worker", "doctor"),
}
"""Commands by section, in the order of the help text."""

RECOMMEND_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Question": (
        "vram", "model", "data", "device", "device_spec", "image_size", "effective_batch",
        "weights", "pretrained",
    ),
    "Search": (
        "methods", "precisions", "optimizers", "checkpoints", "levers", "power_limit", "trials",
        "stop_when_flat", "seed",
    ),
    "Choice": (
        "objective", "min_accuracy", "max_hours", "max_kwh", "risk", "price_per_kwh",
        "grams_per_kwh", "training_free", "allow_training_free",
    ),
    "Runs on this machine or on workers": (
        "probe_minutes", "find_lr", "no_validate", "top", "steps", "workers",
    ),
    "Study and files": ("study", "storage", "out", "html"),
    "Output": ("notes", "verbose", "progress", "as_json"),
}  # fmt: skip
"""Parameters of ``recommend`` by section, in the order of the help text."""


class RecommendCommand(click.Command):
    """The command ``recommend``, whose many options are printed in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        records = {
            param.name: record
            for param in self.get_params(ctx)
            if (record := param.get_help_record(ctx)) is not None
        }
        _write_sections(formatter, RECOMMEND_SECTIONS, records)


def write_commands(formatter: click.HelpFormatter, commands: Mapping[str, click.Command]) -> None:
    """Write the commands of a group with their one-line helps, section by section."""
    name_width = max(map(len, commands))
    records = {
        name: (name.ljust(name_width), command.get_short_help_str(formatter.width - name_width - 6))
        for name, command in commands.items()
    }
    _write_sections(formatter, COMMAND_SECTIONS, records)


def _write_sections(
    formatter: click.HelpFormatter,
    sections: Mapping[str, Sequence[str]],
    records: Mapping[str, tuple[str, str]],
) -> None:
    """Write the records in their sections; those that no section names end the last one."""
    named = {name for names in sections.values() for name in names}
    others = [name for name in records if name not in named]
    for number, (title, names) in enumerate(sections.items(), start=1):
        rest = others if number == len(sections) else []
        with formatter.section(title):
            formatter.write_dl([records[name] for name in (*names, *rest) if name in records])
