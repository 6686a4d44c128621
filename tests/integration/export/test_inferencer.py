"""CCLInferencer takes what cameras give, in any thread, and names the product; what it cannot take it refuses."""

import copy
import pickle
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import PredictDataset
from anomalib.engine import Engine
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from anomalib_ccl import CCL, CCLInferencer
from anomalib_ccl.errors import InputError

pytestmark = pytest.mark.openvino

# Some processors' OpenVINO computes in bfloat16 unless it is kept from it.
SINGLE_PRECISION = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(scope="module")
def inferencer(exported_ccl: Path) -> CCLInferencer:
    return CCLInferencer(exported_ccl, device="CPU", config=SINGLE_PRECISION)


@pytest.fixture(scope="module")
def retina(inferencer: CCLInferencer, products: Path) -> NDArray[np.uint8]:
    """The picture whose score is furthest from 0 and 1, because one that is clipped would agree with anything."""
    pictures = [np.asarray(Image.open(path)) for path in sorted((products / "retina").glob("t*/*/*.png"))]
    return min(pictures, key=lambda picture: abs(inferencer.predict(picture).pred_score.item() - 0.5))


def test_a_picture_gets_the_same_score_however_a_camera_gives_it(
    inferencer: CCLInferencer, retina: NDArray[np.uint8], tmp_path: Path
) -> None:
    Image.fromarray(retina).save(tmp_path / "8.png")
    frames = {
        "channels first": retina.transpose(2, 0, 1),
        "file": tmp_path / "8.png",
        "16 bits": retina.astype(np.uint16) * 257,
        "tensor": torch.from_numpy(retina / 255).permute(2, 0, 1),
    }
    expected = inferencer.predict(retina)
    assert 0 < expected.pred_score.item() < 1
    for name, frame in frames.items():
        prediction = inferencer.predict(frame)
        assert prediction.explanation == expected.explanation, name
        np.testing.assert_allclose(prediction.pred_score, expected.pred_score, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(prediction.anomaly_map, expected.anomaly_map, atol=1e-3, err_msg=name)


def test_files_get_the_scores_that_the_engine_gives_them(
    inferencer: CCLInferencer, trained_ccl: Path, retina: NDArray[np.uint8], tmp_path: Path
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(retina).save(folder / "0.jpg", exif=turned)
    Image.fromarray(retina).convert("P").save(folder / "1.png")
    Image.fromarray(retina[..., 1].astype(np.uint16) * 257).save(folder / "2.png")
    Image.fromarray((retina[..., 1] / 255).astype(np.float32)).save(folder / "3.tif")
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False)
    model, dataset = CCL.load_from_checkpoint(trained_ccl), PredictDataset(folder)
    for batch in engine.predict(model, dataset=dataset):
        path = Path(batch.image_path[0])
        scores = [inferencer.predict(frame).pred_score.item() for frame in (path, Image.open(path))]
        assert scores == pytest.approx([batch.pred_score.item()] * 2, abs=1e-3), path.name
    Image.fromarray(retina[::2]).save(folder / "4.png")
    loader = DataLoader(PredictDataset(folder), batch_size=5, collate_fn=dataset.collate_fn)
    assert len(engine.predict(model, dataloaders=loader)[0]) == 5  # of two sizes


def test_threads_copies_and_pickles_give_the_answers_of_one_thread(inferencer: CCLInferencer, products: Path) -> None:
    frames = [np.asarray(Image.open(path)) for path in sorted(products.glob("*/test/*/*.png"))]
    expected = [inferencer.predict(frame).pred_score.item() for frame in frames]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert [p.pred_score.item() for p in pool.map(inferencer.predict, frames)] == expected
    for other in (copy.copy(inferencer), copy.deepcopy(inferencer), pickle.loads(pickle.dumps(inferencer))):
        assert other.class_names == inferencer.class_names
        assert other.predict(frames[0]).pred_score.item() == expected[0]


def test_the_product_may_be_given(inferencer: CCLInferencer, pictures: Path, product_names: list[str]) -> None:
    images = torch.stack([item.image for item in PredictDataset(pictures)])
    recognised = inferencer.predict(images)
    assert recognised.explanation == [*product_names, "unknown"]
    for index, product in enumerate(product_names):
        prediction = inferencer.predict(images, product=product)
        assert prediction.explanation == [product] * 4
        assert prediction.pred_score[index] == pytest.approx(recognised.pred_score[index], rel=1e-4)
    with pytest.raises(InputError, match="does not know the product 'unknown'; it knows brick, retina, tissue"):
        inferencer.predict(images, product="unknown")


def test_a_model_remembers_the_range_of_its_training_images(
    exported_ccl: Path, retina: NDArray[np.uint8], tmp_path: Path
) -> None:
    # As if it had been trained on 12 bits.
    xml = exported_ccl.read_text()
    assert xml.count("&quot;integers&quot;: null") == 1
    file = tmp_path / "model.xml"
    file.write_text(xml.replace("&quot;integers&quot;: null", "&quot;integers&quot;: [0, 4095]"))
    shutil.copy(exported_ccl.with_suffix(".bin"), tmp_path)
    inferencer = CCLInferencer(file, device="CPU", config=SINGLE_PRECISION)
    expected = inferencer.predict(retina).pred_score.item()
    assert inferencer.predict(retina.astype(np.uint16) * 16).pred_score.item() == pytest.approx(expected, abs=0.02)
    with pytest.warns(UserWarning, match="brighter than 4095, which was white in training"):
        inferencer.predict(retina.astype(np.uint16) * 257)


def test_an_inferencer_for_one_size_takes_that_size_alone(
    inferencer: CCLInferencer, exported_ccl: Path, retina: NDArray[np.uint8]
) -> None:
    for_one = CCLInferencer(exported_ccl, "CPU", SINGLE_PRECISION, image_size=(64, 48))
    frame = retina[:, :48]
    assert for_one.predict(frame).pred_score == pytest.approx(inferencer.predict(frame).pred_score, rel=1e-3)
    for count, other in ((1, retina), (2, np.stack([frame] * 2))):
        message = rf"shape \[1,3,64,48\], not \({count}, 3, 64, {other.shape[-2]}\); without image_size"
        with pytest.raises(InputError, match=message):
            for_one.predict(other)


@pytest.mark.parametrize(
    "given", [*({"image_size": x} for x in (64, "64", (-1, 0), (64.0, 64.0), (64,))), {"config": "x"}], ids=repr
)
def test_what_is_no_size_and_no_properties_is_refused_in_a_sentence(exported_ccl: Path, given: dict) -> None:
    ((name, value),) = given.items()
    with pytest.raises(InputError, match=re.escape(f"{name}={value!r}")) as caught:
        CCLInferencer(exported_ccl, device="CPU", **given)
    assert re.search(r"config must be a dict, and image_size two whole numbers|not enough values", str(caught.value))
    assert "\n" not in str(caught.value)


def test_what_it_cannot_run_or_read_is_refused(inferencer: CCLInferencer, exported_ccl: Path) -> None:
    with pytest.raises(InputError, match=rf"cannot run {exported_ccl} with device='CUDA', .*; devices here: .*CPU"):
        CCLInferencer(exported_ccl, device="CUDA")
    with pytest.raises(InputError, match=r"missing\.xml is no exported model: give the"):
        CCLInferencer(exported_ccl.parent / "missing.xml")
    with pytest.raises(InputError, match=r"array of shape \(2, 64, 64\) and type uint8 is no image; accepted are"):
        inferencer.predict(np.zeros((2, 64, 64), np.uint8))


def test_in_a_process_of_its_own_it_leaves_nothing_behind(
    exported_ccl: Path, pictures: Path, tmp_path: Path, run: Callable
) -> None:
    program = f"""
from anomalib_ccl import CCLInferencer
print(CCLInferencer({str(exported_ccl)!r}, "CPU").predict({str(pictures / "0.png")!r}).explanation)
"""
    found = run("python", "-c", program, cwd=tmp_path, fresh=True)
    assert found.stdout.splitlines()[-1] == "['brick']", found.stderr
    assert not list(tmp_path.iterdir())
