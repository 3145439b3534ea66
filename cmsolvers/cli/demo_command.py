"""`cmsolvers demo`: the digits from training to a report."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from cmsolvers.cli.one_command import Command


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, help="processes side by side (default: 2)")
    parser.add_argument("--tiny", action="store_true", help="seconds instead of minutes, to try it")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a target is missed")


def _run(options: Namespace) -> int:
    from cmsolvers.demo import DemoSettings, run_demo

    settings = DemoSettings.tiny(options.seed) if options.tiny else DemoSettings(options.seed)
    results = run_demo(options.out, settings, workers=options.workers, progress=not options.quiet)
    for target in results["targets"]:
        state = "kept  " if target["kept"] else "MISSED"
        print(
            f"{state} {target['what']}: {target['value']:.4g} {target['relation']} "
            f"{target['bound']:.4g}"
        )
    print(f"report: {options.out / 'report.html'}")
    return int(options.check and not all(target["kept"] for target in results["targets"]))


COMMAND = Command(
    "demo", "train, sample and report on handwritten digits", _options, _run, out="demo-output"
)
