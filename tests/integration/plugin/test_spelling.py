"""One short message with the nearest name for what is misspelt, and only where it has to do with us."""

from pathlib import Path

import pytest
from anomalib.cli.cli import AnomalibCLI

DATA = ["--data=MultiCategory", "--data.root=absent"]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Parse a command line and return what is printed before it is refused."""
    with pytest.raises(SystemExit) as error:
        AnomalibCLI(words, run=False)
    assert error.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--model=ccl", *DATA], "model 'ccl' is unknown; did you mean 'CCL'?"),
        (["export", "--model", "CLL"], "model 'CLL' is unknown; did you mean 'CCL'?"),
        (["fit", "--model=anomalib_ccl.Ccl"], "model 'Ccl' is unknown; did you mean 'CCL'?"),
        (
            ["train", "--model=CCL", "--data=MultiCategry"],
            "data 'MultiCategry' is unknown; did you mean 'MultiCategory'?",
        ),
        (
            ["train", "--model=CCL", "--model.projecton=light"],
            "CCL has no argument 'projecton'; did you mean 'projection'?",
        ),
        (
            ["train", "--model=CCL", "--model.foo=1"],
            "CCL has no argument 'foo'; --model.help=CCL explains those it has",
        ),
        (
            ["train", "--model=CCL", "--model.projection=standart"],
            "projection of CCL is 'standart', did you mean 'standard'? It takes Optional[Literal['standard', ",
        ),
        (
            ["train", "--model=CCL", "--model.false_alarm_rate=x"],
            "false_alarm_rate of CCL is 'x', but takes float | None",
        ),
        (["train", *DATA, "--data.datset=x"], "MultiCategory has no argument 'datset'; did you mean 'dataset'?"),
        (["train", "--modle=CCL"], "unknown option 'modle'; did you mean 'model'?"),
        (
            ["train", "--model=CCL", "--trainer.max_epohcs=1"],
            "option 'trainer.max_epohcs'; did you mean 'trainer.max_epochs'",
        ),
        (["trian", "--model=CCL"], "unknown command 'trian'; did you mean 'train'?"),
        (
            ["train", "--model=CCL", "--trainer.callbacks+=EarlyStoping"],
            "trainer.callbacks 'EarlyStoping' is unknown; did you mean 'EarlyStopping'?",
        ),
    ],
)
def test_nearest_name_stands_in_one_short_message(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = refused(capsys, *words).splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {class_path: anomalib_ccl.CLL}", "model 'CLL' is unknown; did you mean 'CCL'?"),
        (
            "model: {class_path: CCL, init_args: {backbon: x}}",
            "CCL has no argument 'backbon'; did you mean 'backbone'?",
        ),
        (
            "{model: CCL, trainer: {max_epohcs: 1}}",
            "unknown option 'trainer.max_epohcs'; did you mean 'trainer.max_epochs'?",
        ),
    ],
)
def test_configuration_is_corrected_too(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(text)
    assert refused(capsys, "train", f"--config={config}") == f"error: {message}\n"


def test_nearest_configuration_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ccl_lite0.yaml").write_text("model: CCL")
    message = refused(capsys, "train", f"--config={tmp_path}/cll_lite0.yaml")
    assert message == f"error: there is no file {tmp_path}/cll_lite0.yaml; did you mean ccl_lite0.yaml?\n"


def test_nearest_configuration_of_those_that_come_with_the_package_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, "train", "--config=configs/model/ccl_lite.yaml", "--data=sample.yaml")
    assert message.endswith("configs/model/ccl_lite.yaml; did you mean ccl_lite0.yaml?\n")


@pytest.mark.parametrize("words", [["--model=Padm"], ["--model=Padim", "--model.backbon=x"], ["--modle=Padim"]])
def test_other_runs_are_refused_in_anomalibs_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "train", *words)
    assert "tip: For details of accepted options run" in message
    assert "did you mean" not in message
