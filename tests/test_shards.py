"""Who does what of a shared job, and what is known of it after any of its processes has died."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audiovae.errors import PathError
from audiovae.locks import LockedError
from audiovae.shards import JOB, Job, Shard, gather, row_log

FILES = [f"in/{i}.wav" for i in range(7)]
ONE = Job("encode", {"model": "speech-16k"}, FILES)
OTHER = Job("encode", {"model": "other"}, FILES)


def begin(folder: Path, shard: Shard, files: list[str], failing: str = "") -> None:
    with row_log(folder, ONE, shard) as log:
        for file in files:
            log.append({"file": file, "error": f"{file}: broken"} if file == failing else {"file": file, "level": 0.1})


def test_every_file_is_of_one_shard() -> None:
    shards = [Shard.parse(f"{i}/3") for i in (1, 2, 3)]
    assert sorted(file for shard in shards for file in shard.share(FILES)) == FILES
    assert [len(shard.share(FILES)) for shard in shards] == [3, 2, 2]
    for text in ("0/3", "4/3", "3", "a/b", "1/0", "1/2/3", "-1/2"):
        with pytest.raises(ValueError):
            Shard.parse(text)


def test_rows_come_together_in_the_order_of_the_files_and_what_is_missing_is_named(tmp_path: Path) -> None:
    begin(tmp_path, Shard(2, 3), FILES[1::3], failing=FILES[4])
    begin(tmp_path, Shard(1, 3), FILES[0:6:3])
    found = gather(tmp_path)
    assert found.job == ONE
    assert [row["file"] for row in found.rows] == [FILES[i] for i in (0, 1, 3, 4)]
    assert found.rows[3] == {"file": FILES[4], "error": "in/4.wav: broken"}
    assert found.missing == [FILES[i] for i in (2, 5, 6)]


def test_a_torn_row_is_written_again_and_what_another_number_of_shards_did_stays_done(tmp_path: Path) -> None:
    begin(tmp_path, Shard(1, 3), FILES[::3], failing=FILES[3])
    path = tmp_path / "rows.1-of-3.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])  # as a process leaves it that dies
    assert gather(tmp_path).missing == [FILES[i] for i in (1, 2, 4, 5, 6)]
    with row_log(tmp_path, ONE, Shard(1, 3), resume=True) as log:
        assert log.rows.keys() == {FILES[0]}
        assert log.failed == {FILES[3]}
        log.append({"file": FILES[6], "level": 0.1})
    assert path.read_bytes() == whole
    with row_log(tmp_path, ONE, Shard(2, 2), resume=True) as log:
        assert log.rows.keys() == {FILES[0], FILES[6]}
        log.append({"file": FILES[3], "level": 0.1})
    found = gather(tmp_path)  # once each, and what was done after it had failed is done
    assert found.rows == [{"file": FILES[i], "level": 0.1} for i in (0, 3, 6)]


def test_a_row_whose_output_is_gone_is_not_done(tmp_path: Path) -> None:
    outputs = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for output in outputs:
        output.touch()
    with row_log(tmp_path, ONE) as log:
        log.append({"file": FILES[0], "output": str(outputs[0])})
        log.append({"file": FILES[1], "output": list(map(str, outputs))})
    outputs[1].unlink()
    with row_log(tmp_path, ONE, resume=True) as log:
        assert log.rows.keys() == {FILES[0]}


def test_what_was_begun_is_kept_and_another_job_refused(tmp_path: Path) -> None:
    begin(tmp_path, Shard(), FILES[:2])
    with (
        pytest.raises(PathError, match=r"rows\.1-of-1\.jsonl: exists already; --resume goes on, --overwrite"),
        row_log(tmp_path, ONE),
    ):
        pass
    with (
        pytest.raises(PathError, match=r"job\.jsonl: is of another job: other options or other files"),
        row_log(tmp_path, OTHER, Shard(2, 2), resume=True),
    ):
        pass
    with (
        row_log(tmp_path, ONE, resume=True),
        pytest.raises(LockedError, match="has been at work on it since"),
        row_log(tmp_path, ONE, resume=True),
    ):
        pass
    assert len(gather(tmp_path).rows) == 2
    with row_log(tmp_path, OTHER, Shard(2, 2), overwrite=True) as log:
        log.append({"file": FILES[1]})
    assert gather(tmp_path).rows == [{"file": FILES[1]}]  # none of the job of before


def test_a_folder_without_a_job_or_with_a_damaged_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PathError, match=r"holds no job \(no job\.jsonl\); give the folder"):
        gather(tmp_path)
    begin(tmp_path, Shard(), FILES[:1])
    (tmp_path / JOB).write_text((tmp_path / JOB).read_text().replace("in/3", "in/4"))
    with pytest.raises(PathError, match=r"job\.jsonl: cannot be read, or is damaged"):
        gather(tmp_path)


def test_rows_survive_what_json_has_no_word_for(tmp_path: Path) -> None:
    row = {"file": "in/caf\udce9.wav", "values": {"si_sdr": float("inf")}, "output": []}
    job = Job("score", {}, [row["file"]])
    with row_log(tmp_path, job) as log:
        log.append(row)
    assert gather(tmp_path).rows == [row]
    assert json.loads((tmp_path / "rows.1-of-1.jsonl").read_text().splitlines()[0]) == {"job": job.content()[0]}
