"""Choice of launch configurations, and precision of products."""

import json

import pytest
import torch

from fastglow.errors import FastglowError
from fastglow.kernels import graphs, launch

SMALL = {"BT": 16, "num_warps": 4, "num_stages": 2}
LARGE = {"BT": 128, "num_warps": 8, "num_stages": 3}
CANDIDATES = (LARGE, SMALL)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A GPU with a table: small tiles at 100 rows, large ones at 10,000, and at 10^6 tiles that are not a candidate."""
    other = {"BT": 64, "num_warps": 1, "num_stages": 1}
    entries = [
        {"dtype": "float16", "shape": {"rows": rows, "channels": 64}, "config": config}
        for rows, config in ((100, SMALL), (10_000, LARGE), (1_000_000, other))
    ]
    (tmp_path / "some-gpu.json").write_text(json.dumps({"gpu": "Some GPU", "kernels": {"op_fwd": entries}}))
    monkeypatch.setattr(launch, "CONFIG_FOLDER", tmp_path)
    monkeypatch.setattr(launch, "gpu_of", lambda tensor: "some-gpu")
    launch.forget_measurements()
    yield
    launch.forget_measurements()


def pick(rows: int, dtype: torch.dtype = torch.float16, kernel: str = "op_fwd", **shape: int):
    tensor = torch.zeros(1, dtype=dtype)
    return launch.pick_config(kernel, CANDIDATES, lambda dtype, **_: SMALL, tensor, **{"rows": rows, **shape})


@pytest.mark.parametrize("rows, expected", [(1, SMALL), (120, SMALL), (900, SMALL), (1100, LARGE), (20_000, LARGE)])
def test_the_nearest_measured_shape_is_used(measured, rows, expected):
    assert pick(rows, channels=64) == expected


def test_the_heuristic_without_measurements(measured):
    assert pick(10_000, channels=64, dtype=torch.float32) == SMALL
    assert pick(10_000, channels=64, kernel="other_fwd") == SMALL
    assert pick(10_000, columns=64) == SMALL  # the table is by other sizes, from an older version


def test_bfloat16_uses_float16_measurements(measured):
    assert pick(10_000, channels=64, dtype=torch.bfloat16) == LARGE


def test_a_measured_configuration_must_be_a_candidate(measured):
    assert pick(1_000_000, channels=64) == SMALL


def test_no_table_for_this_gpu(measured, monkeypatch):
    monkeypatch.setattr(launch, "gpu_of", lambda tensor: "another-gpu")
    assert pick(10_000, channels=64) == SMALL


def test_a_forced_configuration_and_the_record_of_choices():
    with launch.record_choices() as choices, launch.use_config("op_fwd", LARGE):
        assert pick(1) == LARGE
        assert pick(1, kernel="other_fwd") == SMALL
    assert pick(1) == SMALL
    assert [(choice.kernel, choice.dtype, choice.shape) for choice in choices] == [
        ("op_fwd", "float16", (("rows", 1),)),
        ("other_fwd", "float16", (("rows", 1),)),
    ]


def test_forced_configurations_of_several_kernels():
    with launch.use_config("op_fwd", LARGE):
        with launch.use_config("op_bwd", LARGE), launch.use_config("op_fwd", SMALL):
            assert (pick(1), pick(1, kernel="op_bwd")) == (SMALL, LARGE)
        assert (pick(1), pick(1, kernel="op_bwd")) == (LARGE, SMALL)


@pytest.mark.parametrize(
    "name, slug",
    [("NVIDIA H200", "nvidia-h200"), ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb"), ("Tesla (T4)", "tesla-t4")],
)
def test_gpu_names_as_file_names(name, slug):
    assert launch.gpu_slug(name) == slug


def test_tables_on_a_device_are_made_once():
    table = graphs.integer_table(((1, 2), (3, 2**40)), torch.device("cpu"))
    assert table.tolist() == [[1, 2], [3, 2**40]]
    assert graphs.integer_table(((1, 2), (3, 2**40)), torch.device("cpu")) is table
    x = torch.zeros(3)
    assert graphs.pointer_table([x, x[1:]]).tolist() == [x.data_ptr(), x.data_ptr() + 4]


@pytest.mark.parametrize("path", sorted(launch.CONFIG_FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_committed_tables_are_complete(path):
    table = json.loads(path.read_text(encoding="utf-8"))
    assert launch.gpu_slug(table["gpu"]) == path.stem
    for entries in table["kernels"].values():
        for entry in entries:
            assert entry.keys() == {"dtype", "shape", "config"}
            assert {"num_warps", "num_stages"} <= entry["config"].keys()


SWITCHES = {False: torch.backends.cuda.matmul, True: torch.backends.cudnn}


@pytest.fixture(params=SWITCHES, ids=["products", "convolutions"])
def convolution(request):
    before = {switch: switch.allow_tf32 for switch in SWITCHES.values()}
    yield request.param
    for switch, allowed in before.items():
        switch.allow_tf32 = allowed


@pytest.mark.parametrize("allowed, precision", [(True, "tf32"), (False, "ieee")])
def test_precision_of_products(convolution, allowed, precision):
    SWITCHES[convolution].allow_tf32 = allowed
    assert launch.product_precision(torch.float32, convolution) == precision
    assert launch.product_precision(torch.float16, convolution) == "ieee"


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="PyTorch before 2.9")
def test_precision_of_products_by_its_newer_name(convolution):
    """Once it is set, PyTorch refuses to read allow_tf32."""
    newer = torch.backends.cudnn.conv if convolution else torch.backends.cuda.matmul
    for precision in ("tf32", "ieee"):
        newer.fp32_precision = precision
        assert launch.product_precision(torch.float32, convolution) == precision


@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
def test_compiled_code_calls_uncompiled_functions():
    traced = []

    @launch.uncompiled
    def double(x):
        traced.append(torch.compiler.is_compiling())
        return 2 * x

    compiled = torch.compile(lambda x: double(x) + 1, backend="eager")
    assert compiled(torch.ones(1)).item() == double(torch.ones(1)).item() + 1 == 3
    assert traced == [False, False]


def test_a_grid_that_cuda_would_refuse_is_an_error_with_the_remedy():
    def never(*arguments, **options):
        raise AssertionError("launched")

    class Kernel:
        warmup = run = never

        def __getitem__(self, grid):
            return never

    Kernel.__name__ = "some_kernel"
    for grid in ((2**31,), (1, 65_536), (1, 1, 65_536)):
        with pytest.raises(FastglowError, match=r"op: some_kernel would need \d+ programs in dimension [xyz]"):
            launch.launch("op", Kernel, grid, device=torch.device("cpu"))
    counted = []
    Kernel.__getitem__ = lambda self, grid: lambda: counted.append(grid)
    largest = (2**31 - 1, 65_535, 65_535)
    launch.launch("op", Kernel(), largest, device=torch.device("cpu"))
    assert counted == [largest]
