"""What the command line says of mistakes: one line that names what was wrong and what was probably meant."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
import warnings

import pytest

from pnet_jax.cli import main
from pnet_jax.commands import networks
from pnet_jax.commands.app import QUESTIONS, SECTIONS, TOOLS
from pnet_jax.commands.evaluation import Simulated, encoder
from pnet_jax.commands.networks import _warned
from pnet_jax.commands.options import Bar, Done
from pnet_jax.commands.question_options import Folds
from pnet_jax.evaluate.cases import CONDITIONS, HELD_OUT_SEED
from pnet_jax.evaluate.plan import FEATURES


def said(capsys, *arguments: str) -> tuple[int, str]:
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code)
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parcells = 3", "config.toml. Did you mean --parcels?"),
        ("[cleaning]\nlow_pas = 0.1", "config.toml. Did you mean --cleaning.low-pass?"),
        ("[cleanig]\nlow_pass = 0.1", "config.toml. Did you mean --cleaning.low-pass?"),
        ("parcels = \n", "config.toml is not valid TOML: Invalid value (at line 1, column 11)"),
        ('parcels = "many"', 'config.toml: unable to convert "many" into int.'),
        (None, "config.toml: no such file or directory"),
    ],
)
def test_mistakes_in_a_configuration_file(text, message, tmp_path, capsys):
    if text is not None:
        (tmp_path / "config.toml").write_text(text)
    code, told = said(capsys, "construct", "in", str(tmp_path / "out"), "--config", str(tmp_path / "config.toml"))
    assert code == 2
    assert told.count("\n") == 1
    assert told.rstrip().endswith(message)
    assert told.startswith("pnet construct: ")


def test_a_configuration_is_printed_as_a_file_that_is_read_again(tmp_path, capsys):
    words = ["construct", "scan.nii.gz", "out"]
    assert main([*words, "--cleaning.wide", "--edges", "pearson", "partial", "--print-config"]) == 0
    first = capsys.readouterr().out
    printed = tomllib.loads(first)
    assert printed["cleaning"]["wide"] is True and printed["edges"] == ["pearson", "partial"]
    (tmp_path / "config.toml").write_text(first)
    assert main([*words, "--config", str(tmp_path / "config.toml"), "--print-config"]) == 0
    assert capsys.readouterr().out == first


def test_options_win_over_files_and_later_files_over_earlier_ones(tmp_path, capsys):
    (tmp_path / "a.toml").write_text("kappa = 3.0\nbeta = 0.1\nparcels = 100\n")
    (tmp_path / "b.toml").write_text("kappa = 4.0\nbeta = 0.2\nreport = false\n")  # `report` is a command too
    files = ["--config", str(tmp_path / "a.toml"), "--config", str(tmp_path / "b.toml")]
    assert main(["construct", "scan.nii.gz", "out", *files, "--beta", "0.3", "--print-config"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    assert (printed["kappa"], printed["beta"], printed["parcels"], printed["report"]) == (4.0, 0.3, 100, False)


def test_a_configuration_file_that_is_right_is_read(tmp_path, capsys):
    (tmp_path / "config.toml").write_text('edges = ["pearson"]\n[cleaning]\nlow_pass = 0.2\n')
    code, told = said(capsys, "construct", str(tmp_path / "none"), str(tmp_path / "out"), f"--config={tmp_path / 'config.toml'}")
    assert (code, told) == (1, f"pnet construct: input {tmp_path / 'none'}: no such file or folder\n")


def test_an_unknown_option_names_the_nearest(capsys):
    code, told = said(capsys, "construct", "in", "out", "--parcel", "40")
    assert (code, told) == (2, "pnet construct: unknown option: --parcel. Did you mean --parcels?\n")


def test_a_value_of_the_wrong_type_is_told_in_one_line(capsys):
    assert said(capsys, "construct", "in", "out", "--tr", "two") == (
        2,
        'pnet construct: invalid value for --tr: unable to convert "two" into float.\n',
    )


def test_a_value_out_of_range_is_refused(capsys):
    code, told = said(capsys, "construct", "in", "out", "--kappa", "-1")
    assert (code, told) == (2, "pnet construct: --kappa: expected a number above 0, or no value to estimate it for each scan, got -1.0\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("personalize", "store", "out", "--group", "group", "--wave", "0"), "personalize: --wave: expected 1 or more, got 0"),
        (("construct", "in", "out", "--personalize.wave", "0"), "construct: --personalize.wave: expected 1 or more, got 0"),
        (("construct", "in", "out", "--cleaning.scrub", "-1"), "construct: --cleaning.scrub: expected 0 or more, got -1"),
        (("construct", "in", "out", "--cleaning.low-pass", "0.001"), "construct: expected high_pass below low_pass, got high_pass = "),
        (("prepare", "in", "store", "--window", "0"), "prepare: --window: expected 10 or more, got 0"),
        (("pretrain", "in", "out", "--optimiser.average", "1"), "pretrain: --optimiser.average: expected 0 or more and below 1, got 1.0"),
        (("simulate", "out", "--severity", "2"), "simulate: --severity: expected 0…1, got 2.0"),
        (("evaluate", "encoder", "--subjects", "0"), "evaluate encoder: --subjects: expected 1 or more, got 0"),
    ],
)
def test_every_command_refuses_such_a_value_alike(arguments, message, capsys):
    code, told = said(capsys, *arguments)
    assert code == 2
    assert told.startswith(f"pnet {message}") and told.count("\n") == 1


@pytest.mark.filterwarnings("default")
def test_warnings_are_told_without_code(monkeypatch, capsys):
    monkeypatch.setattr(networks, "report", lambda folder: warnings.warn("mind this", stacklevel=2))
    assert main(["report", "folder"]) == 0
    assert capsys.readouterr().err == "pnet report: warning: mind this\n"


def test_pretraining_says_why_every_scan_was_left_out(tmp_path, capsys):
    file = tmp_path / "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    file.write_bytes(b"no image")
    code, told = said(capsys, "pretrain", str(file), str(tmp_path / "model"), "--reference-space", "scans")
    assert code == 1
    assert "left out: sub-01_task-rest" in told
    assert told.rstrip().endswith("pnet pretrain: pre-training needs at least one scan, got none")
    assert not (tmp_path / "model").exists()


def test_a_checkpoint_that_could_not_be_written_is_refused_before_the_first_scan(tmp_path, capsys):
    file = tmp_path / "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
    file.write_bytes(b"no image")
    code, told = said(capsys, "pretrain", str(file), str(file / "model"))
    assert code == 1
    assert "is a file" in told
    assert "left out" not in told


def test_a_subject_in_another_space_only_is_a_failed_row(tmp_path, capsys):
    for name in ("sub-01_task-rest_space-T1w", "sub-02_task-rest_space-MNI152NLin6Asym"):
        (tmp_path / f"{name}_desc-preproc_bold.nii.gz").touch()
    code, told = said(capsys, "construct", str(tmp_path), str(tmp_path / "out"), "--participant-label", "01", "--no-report")
    assert code == 1
    assert "failed: sub-01_task-rest: subject 01 has no recording in a supported space: expected an MNI space" in told
    assert told.rstrip().endswith("found space-T1w")
    assert "unavailable" in (tmp_path / "out" / "status.tsv").read_text("utf-8")


def test_the_closing_line_retries_with_the_options_given(tmp_path, capsys):
    folder = tmp_path / "in put"
    folder.mkdir()
    for name in ("sub-01_task-rest_space-T1w", "sub-02_task-rest_space-MNI152NLin6Asym"):
        (folder / f"{name}_desc-preproc_bold.nii.gz").touch()
    (tmp_path / "c.toml").write_text("kappa = 9.0\n")
    config = ["--config", str(tmp_path / "c.toml")]
    words = [str(folder), str(tmp_path / "out"), "--participant-label", "01", "--parcels", "100", "--no-report", *config]
    assert main(["construct", *words, "--resume"]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Correct the causes"))
    assert shlex.split(line.partition("then run: ")[2]) == ["pnet", "construct", *words, "--retry-failed"]
    assert main(["construct", *words, "--retry-failed", "--dry-run"]) == 0
    assert "constructing 1 of 1 failed scans again" in capsys.readouterr().out
    words[words.index("100")] = "200"
    code, told = said(capsys, "construct", *words, "--retry-failed")
    assert code == 1 and ": parcels 100 then, 200 now; atlas geometric100 then, geometric200 now; give the options of that run" in told


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_command_in_order(sent, code, monkeypatch, capsys):
    seen = []

    def command(arguments):
        try:
            os.kill(os.getpid(), sent)
        finally:
            seen.append("tidied up")
        return 0

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    monkeypatch.setattr(networks, "report", command)
    monkeypatch.setattr(networks, "construct", command)
    assert said(capsys, "construct", "x") == (
        code,
        f"pnet construct: stopped by {sent.name}; finished results are kept; resume with --resume\n",
    )
    seen.clear()
    assert said(capsys, "report", "x") == (code, f"pnet report: stopped by {sent.name}; finished results are kept\n")
    assert seen == ["tidied up"]
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_a_hangup_that_nohup_ignores_ends_nothing(monkeypatch, capsys):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(networks, "report", lambda folder: os.kill(os.getpid(), signal.SIGHUP) or 0)
        assert said(capsys, "report", "x") == (0, "")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_results_do_not_go_into_the_input(tmp_path, capsys):
    code, told = said(capsys, "construct", str(tmp_path), f"{tmp_path}/.")
    assert code == 1 and told.startswith(f"pnet construct: OUT and INPUT are the same folder ({tmp_path}") and told.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said_of"),
    [
        (["--shard", "3"], "--shard: expected I/N, e.g. 3/20, or auto, got '3'"),
        (["--shard", "4/3"], "shard: expected i/N with 1 <= i <= N, got 4/3"),
        (["--cluster", "gnu"], "cluster: expected one of local, slurm, pbs, sge, lsf, mpi, got 'gnu'"),
        (["--shard", "1/2", "--cluster", "local"], "--shard cannot be combined with --cluster or --scheduler"),
        (["--workers", "-1"], "--workers: expected 0 or more, got -1"),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_scan(options, said_of, tmp_path, capsys):
    (tmp_path / "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz").touch()
    code, told = said(capsys, "construct", str(tmp_path), str(tmp_path / "out"), "--no-report", *options)
    assert code in (1, 2) and said_of in told
    assert not list((tmp_path / "out").rglob("sub-*"))


def test_status_of_a_folder_that_is_not_there(tmp_path, capsys):
    code, told = said(capsys, "status", str(tmp_path / "nowhere"))
    assert code == 1 and "nowhere does not exist: give the output folder of pnet construct" in told
    code, told = said(capsys, "status", str(tmp_path))
    assert code == 1 and "contains no results" in told


def test_progress_of_what_has_no_label_has_no_gap(monkeypatch, capsys):
    monkeypatch.setattr("pnet_jax.commands.options.LINE_SECONDS", -1.0)
    with Bar(6, "simulate", unit="subject") as bar:
        bar("", 1, 6)
    assert re.match(r"simulate: 1 of 6 subjects; \d+ per hour", capsys.readouterr().err)


def test_a_reader_that_closes_the_output_ends_a_command_without_a_message(tmp_path):
    """As `head` does; both where a line is printed and where only the last flush meets the closed pipe."""
    for lines in (100_000, 1):
        code = "from pnet_jax import cli; from pnet_jax.commands import networks; "
        code += f"networks.status = lambda out='': print('x\\n' * {lines}) or 0; "
        code += "raise SystemExit(cli.main(['status']))"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
            command.stdout.close()
            assert command.stderr.read() == b""
            assert command.wait() == 128 + signal.SIGPIPE


def test_a_broken_pipe_elsewhere_is_told(monkeypatch, capsys):
    def broken(_):
        raise BrokenPipeError("a worker is gone")

    monkeypatch.setattr(networks, "report", broken)
    assert said(capsys, "report", "x") == (1, "pnet report: a worker is gone\n")


def test_a_warning_of_many_scans_is_told_once_with_their_number():
    few = "26 regressors leave {:.1f} degrees of freedom; correlations will be poor"
    rows = [{"scan": f"sub-{n}", "status": "ok", "said": [few.format(3 + n / 10)]} for n in range(5)]
    rows[2]["said"] = [*rows[2]["said"], "the head moved a lot"]
    rows.append({"scan": "sub-9", "status": "failed", "error": "damaged"})
    assert _warned(rows, "out") == [
        f"warning: 5 of 6 scans, e.g. sub-0: {few.format(3.0)}",
        "warning: sub-2: the head moved a lot",
    ]


def test_progress_without_a_terminal_is_lines(monkeypatch, capsys):
    monkeypatch.setattr("pnet_jax.commands.options.LINE_SECONDS", -1.0)
    with Bar(10, "construct") as bar:
        bar.of_scans("sub-01", 5, 2, 10)
    told = capsys.readouterr().err
    assert re.search(r"construct: 5 of 10 scans, 2 failed, sub-01; \d+ per hour, about \d+ s left; peak memory [\d.]+ GiB", told)


# What a command reports


@pytest.fixture
def reported(monkeypatch):
    """`pnet report` as a command with a summary, data, progress and a warning."""

    def stand_in(folder: str, /) -> Done:
        with Bar(1, "report") as bar:
            bar.say("working")
        warnings.warn("mind this", stacklevel=2)
        return Done(f"Report: {folder}", {"report": folder}, 1)

    monkeypatch.setattr(networks, "report", stand_in)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("option", "out", "progress"), [(None, "Report: f\n", True), ("--quiet", "", False), ("--json", '{\n "report": "f"\n}\n', True)]
)
def test_summary_progress_and_data(option, out, progress, reported, capsys):
    assert main(["report", "f", *([option] if option else [])]) == 1
    found = capsys.readouterr()
    assert found.out == out
    assert ("report: working" in found.err) == progress
    assert "pnet report: warning: mind this" in found.err


def test_verbose_prints_the_settings_and_the_traceback(tmp_path, capsys):
    words = ["construct", str(tmp_path / "none"), str(tmp_path / "out"), "--kappa", "7"]
    assert main(words) == 1 and "Traceback" not in capsys.readouterr().err
    assert main([*words, "--verbose"]) == 1
    told = capsys.readouterr().err
    assert "kappa = 7.0" in told and "Traceback" in told and told.rstrip().endswith("no such file or folder")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("status", "a", "b"), "pnet status: unexpected argument: b"),
        (("construct", "a"), "pnet construct: OUT is missing; see --help"),
        (("evaluate", "diagnosis", "a", "b"), "pnet evaluate diagnosis: --target is missing; see --help"),
        (("constuct", "a"), 'pnet constuct: unknown command "constuct". Did you mean "construct"?'),
        (("construct", "a", "b", "--labels", "own"), 'pnet construct: invalid value "own" for --labels. Choose from: "auto"'),
    ],
)
def test_usage_is_explained_in_one_line(arguments, message, capsys):
    code, told = said(capsys, *arguments)
    assert code == 2 and told.startswith(message) and told.count("\n") == 1


def test_help_of_every_command_describes_every_option(capsys):
    commands = [[name] for part in (*SECTIONS.values(), TOOLS) for name in part] + [["evaluate", name] for name in QUESTIONS]
    for command in commands:
        assert main([*command, "--help"]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"Usage: pnet {' '.join(command)}")
        lines = text.splitlines()
        for at, line in enumerate(lines):
            if re.match(r"  (--[a-z]|[A-Z]+\b)", line):
                described = line[30:].strip() or lines[at + 1].strip() if len(line) < 30 or line[28:30] != "  " else line[30:].strip()
                assert described and not described.startswith("["), (command, line)


def test_texts_of_options_list_what_the_package_has():
    assert Simulated().seed == HELD_OUT_SEED
    listed = re.search(r"features: Features to compare: (.*?), or edge layers", " ".join(Folds.__doc__.split()))[1]
    assert set(listed.split(", ")) == set(FEATURES)
    assert set(CONDITIONS) <= set(re.findall(r"\w+", encoder.__doc__))


def test_help_starts_without_jax_numpy_or_nibabel():
    code = "import sys; from pnet_jax.cli import main; main(['--help']); print({'jax', 'numpy', 'nibabel'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()" and "construct" in done.stdout


def test_doctor(capsys, monkeypatch):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] and found["packages"]["jax"] and not found["problems"]
    assert any(model.startswith("pnet-linear") for model in found["checkpoints"])
    monkeypatch.setattr("pnet_jax.commands.tools.REQUIRED", ("jax", "no-such-package"))
    assert main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert "Problem: package no-such-package is not installed" in told and told.rstrip().endswith("Networks cannot be constructed.")


@pytest.mark.parametrize("part", ["0/3", "4/3"])
def test_a_part_outside_1_to_n_is_refused_in_a_dry_run_too(part, tmp_path, capsys):
    (tmp_path / "sub-01_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz").touch()
    code, told = said(capsys, "construct", str(tmp_path), str(tmp_path / "out"), "--dry-run", "--shard", part)
    assert code == 1 and f"shard: expected i/N with 1 <= i <= N, got {part}" in told


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    for name in ("sub-01_task-rest_space-T1w", "sub-02_task-rest_space-MNI152NLin6Asym"):
        (tmp_path / f"{name}_desc-preproc_bold.nii.gz").touch()
    words = ["construct", str(tmp_path), str(tmp_path / "out"), "--parcels", "100", "--dry-run", "--participant-label", "01", "02"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "2 scans of 2 participants" in told and "100 parcels" in told and "cannot be read: sub-01" in told
    assert told.rstrip().endswith("Nothing was written.") and not (tmp_path / "out").exists()
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["scans"], found["unreadable"], found["parcels"], found["edges"]) == (2, 1, 100, ["pearson"])
