import errno
import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from prl_jax.errors import UserError
from prl_jax.metrics import JsonlLog, MetricsWriter, read_metrics
from prl_jax.progress import Progress, format_seconds


def read_events(directory):
    """Events of each file, in the order of the files."""
    files = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        data, events = path.read_bytes(), []
        while data:
            size = int.from_bytes(data[:8], "little")
            assert record_writer.masked_crc32c(data[:8]) == int.from_bytes(data[8:12], "little")
            events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
        files.append(events)
    return files


def scalars(events):
    return [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]


def write_steps(directory, steps, resume_step):
    with MetricsWriter(directory, resume_step=resume_step) as writer:
        for step in steps:
            writer.write(step, {"loss": 1 / step})


def test_lines_and_events_hold_what_was_written(tmp_path):
    with MetricsWriter(tmp_path / "sft", resume_step=None) as writer:
        writer.write(1, {"loss": np.float32(0.5), "tokens": 7})
        # The line is there before the writer is closed.
        assert json.loads((tmp_path / "sft" / "metrics.jsonl").read_text()) == {"step": 1, "loss": 0.5, "tokens": 7.0}
        writer.write(2, {"loss": 0.25})
    assert [row["loss"] for row in read_metrics(tmp_path / "sft" / "metrics.jsonl")] == [0.5, 0.25]
    (events,) = read_events(tmp_path / "sft")
    assert events[0].file_version == "brain.Event:2"
    assert scalars(events) == [(1, "loss", 0.5), (1, "tokens", 7.0), (2, "loss", 0.25)]


def test_values_that_json_lacks_are_null_and_every_line_is_strict_json(tmp_path):
    with MetricsWriter(tmp_path, resume_step=None) as writer:
        writer.write(1, {"loss": float("nan"), "kl": float("inf"), "accuracy": np.float32("-inf")})

    def refuse(constant):
        raise AssertionError(constant)

    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": None, "kl": None, "accuracy": None}
    assert math.isnan(scalars(read_events(tmp_path)[0])[0][2])


@pytest.mark.parametrize("resume_step", [0, 2, 3, 5])
def test_resuming_leaves_every_step_once(tmp_path, resume_step):
    write_steps(tmp_path, range(1, 6), None)
    write_steps(tmp_path, range(resume_step + 1, 8), resume_step)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 8))
    first, second = read_events(tmp_path)
    restart = [event for event in second if event.session_log.status == event_pb2.SessionLog.START]
    assert [event.step for event in restart] == [resume_step + 1]  # TensorBoard hides earlier events from here on
    assert not list(tmp_path.glob("*.tmp"))


def test_starting_from_scratch_drops_everything_even_a_broken_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('nonsense\n{"step": 1}\n')
    write_steps(tmp_path, [1], None)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 1.0}]


def test_a_half_written_last_line_is_ignored_and_dropped(tmp_path):
    write_steps(tmp_path, [1, 2, 3], None)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        steps = [row["step"] for row in read_metrics(path)]
        assert steps == ([1, 2, 3] if cut == 1 else [1, 2])  # only the newline is missing, or some of the line
    write_steps(tmp_path, [3, 4], 2)
    assert path.read_bytes().startswith(whole)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]


def test_an_untouched_file_is_not_rewritten(tmp_path):
    write_steps(tmp_path, [1, 2], None)
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    write_steps(tmp_path, [3], 2)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == inode


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for bad in ['{"step": 1', "[1]", '{"loss": 1.0}', '{"step": "1"}']:
        path.write_text('{"step": 1}\n' + bad + '\n{"step": 3}\n')
        with pytest.raises(UserError, match=r"metrics\.jsonl:2: "):
            read_metrics(path)
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        read_metrics(tmp_path / "missing.jsonl")


def test_a_full_disk_is_one_clear_line(tmp_path):
    writer = MetricsWriter(tmp_path, resume_step=None)

    class FullDisk(io.RawIOBase):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    writer._lines._file.close()
    writer._lines._file = FullDisk()
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot write \(No space left on device\)"):
        writer.write(1, {"loss": 1.0})
    writer.close()
    writer.close()


def test_running_out_of_room_leaves_no_noise(tmp_path):
    code = """
import pathlib, resource, sys
from prl_jax.errors import UserError
from prl_jax.metrics import MetricsWriter
try:
    with MetricsWriter(pathlib.Path(sys.argv[1]), resume_step=None) as writer:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        for step in range(1, 1000):
            writer.write(step, {"loss": 0.5})
except UserError as error:
    print(error)
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "metrics.jsonl: cannot write (File too large)" in done.stdout and done.stderr == ""


def test_rows_of_a_log_are_resumed_like_metrics(tmp_path):
    path = tmp_path / "stage" / "samples.jsonl"
    with JsonlLog(path, resume_step=None) as log:
        log.write(
            [{"step": 1, "text": "\udc80 \n", "x": [float("nan"), {"y": float("inf")}]}, {"step": 1, "text": "b"}]
        )
        log.write([{"step": 2, "text": "c"}])
        assert len(path.read_text().splitlines()) == 3
    with JsonlLog(path, resume_step=1) as log:
        log.write([{"step": 2, "text": "d"}])
    first, *rest = read_metrics(path)
    assert first == {"step": 1, "text": "\udc80 \n", "x": [None, {"y": None}]}
    assert [(row["step"], row["text"]) for row in rest] == [(1, "b"), (2, "d")]


def test_a_path_that_is_no_directory_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        MetricsWriter(tmp_path / "file" / "stage", resume_step=None)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run_progress(stream, seconds_a_step, steps=10, start=0, **options):
    now = [0.0]
    with Progress("reward_model", start + steps, stream=stream, clock=lambda: now[0], **options) as progress:
        for step in range(start + 1, start + steps + 1):
            now[0] += seconds_a_step
            progress.update(step, {"loss": 1 / step, "win_rate": 0.5})
    return stream.getvalue()


def test_a_terminal_line_is_rewritten_in_place():
    text = run_progress(Terminal(), 0.5, width=200)
    assert text.count("\r") == 10 and text.count("\n") == 1 and text.endswith("\n")
    last = text.rstrip("\n").split("\r")[-1]
    assert last == "reward_model     10/10  2 step/s  ETA 0:00  loss 0.100  win rate 0.500\x1b[K"


def test_a_terminal_line_never_wraps():
    for line in run_progress(Terminal(), 0.5, width=30).strip("\r\n").split("\r"):
        assert len(line.removesuffix("\x1b[K")) <= 29


def test_a_log_gets_the_first_line_one_every_interval_and_the_last():
    lines = run_progress(io.StringIO(), 1.0, steps=13).splitlines()
    assert [line.split()[1] for line in lines] == ["1/13", "6/13", "11/13", "13/13"]
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_the_last_update_is_not_printed_twice():
    lines = run_progress(io.StringIO(), 5.0, steps=3).splitlines()
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]


def test_rate_and_time_left_ignore_what_came_before_the_first_update():
    stream, now = io.StringIO(), [100.0]
    progress = Progress("sft", 30, stream=stream, clock=lambda: now[0], interval=0.0, unit="batch")
    now[0] = 160.0  # a minute of compilation
    progress.update(11)  # resumed at step 10
    assert "/s" not in stream.getvalue()
    now[0] = 160.5
    progress.update(12)
    assert "2 batch/s  ETA 0:09" in stream.getvalue()


def test_metrics_keep_their_last_value():
    stream = io.StringIO()
    progress = Progress("ppo", 3, stream=stream, clock=lambda: 0.0, interval=0.0)
    progress.update(1, {"win_rate": 0.6})
    progress.update(2, {"kl": 0.1, "win_rate": None})
    assert stream.getvalue().splitlines()[-1].endswith("win rate 0.600  kl 0.100")


def test_closing_without_an_update_prints_nothing():
    for stream in (io.StringIO(), Terminal()):
        Progress("sft", 3, stream=stream).close()
        assert stream.getvalue() == ""


def test_format_seconds():
    assert [format_seconds(s) for s in (-1.0, 0.4, 75.0, 3700.0)] == ["0:00", "0:00", "1:15", "1:01:40"]
