"""Weight files of other frameworks: what they hold comes out, what they hide does not."""

import base64
import io
import struct
import zlib

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings

from medjax.errors import InputError
from medjax.models.weights import read

few = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def recorded(*text):
    return zlib.decompress(base64.b64decode("".join(text)))


# ----------------------------------------------------------------- PyTorch, genuine

# torch 2.13 saved {"state_dict": s, "epoch": 3} as these, in its two formats. In s,
# each name after "module.": a Parameter conv.weight, arange(6).reshape(2, 3) / 7; of
# x = arange(12.).reshape(3, 4), both `strided`, x[1:, 1::2].t(), and `shared`, x[0];
# bf16; and a number, num_batches_tracked.
ZIP_FILE = recorded(
    "eNqlVc9v21Qcf/mdeV3ahrF2BbrxoyMdWRo7XdwwaLoIWZqMtDTTJLOL5divsTUnztd56QBpUkXVAteJ"
    "M3BB4j/YgUsPHHaFwy7jAOKAOPEv8J7dJrZLWrY95ZsX573Pj2d/v1835UQSoWwWHRszKI80Vzetbbxi"
    "aEQr9e/bUiOH7oXGTvwhoILCUcCAaASrhqUTiOm6Y9tYJ5bTG3C3XQO72PiIrnAQX25BoqDkKaDrGEMb"
    "l3Snt116gK2OSSCpE4dqltQhsewBp7q4PbRsQ+1rrtbFBLscpCZsIbg3cFx1W+AgXSgoGc+R42odDBkf"
    "wkm2o5E7/p8cZJUY3VOGM0qCznp/CJycJnB2U0ZyXE7sw5SckGP7cO5rk5nOEZhuwcxX3sXsl5BvwStK"
    "bnyMAXEtAxtw3qTyZsb06Xl41eTkKQIXNuUUpY3vwxydkvsw79NeJLDQgteUcwEmU6O3C14/IjIPKd5g"
    "zpJ7sCjH9uCSD79M4M0WvKWcHcPbW3wV3vbBhwdveCfnq6Ozv+OZE2CJMscJXPHOvAfvMuaCz7xM4GoL"
    "3lMWxsy9YVdta0Q38UAlrqbfpy6LIaGPnV5nJHLNE6lAiYrECKxQkeVln7xMgG+BMFRSdAfuO7oJFTkx"
    "LDXlTLZddL64HUeIRXNies6h4ig9S1uO29WIuo3dAc04qVGIZOnkwTPFx//8tsusspisuIDEseJhaqma"
    "bXV6XdwjUqPyv0UDo7rKDNQfwN/0tCh+ooFZVB8ZaH9GsMPqSmrceBHdo2FbhNiYedj78M+LaaqSPtFD"
    "Dq2HusJKWWq8/xIGGOfSrfz60q1H64+7z+icr/eeVevM0a+bu0/m6fr8KY6KYUf88zx/n2OnTr826IfG"
    "Do3vaRzQ+J0Gukl7IY3LNMo3ma9PH26tl1nrOMXX+bAvQWrMHPN1UG8eMM47U398QolQ8hTOjTBnRWp8"
    "8DKP/17mkJl56D/9y2Gi2RM9TKMbIw+jghNf1ESFY8q/fNu5e3r+LyJhXIDe8QfYtWgFfq6xF41qGVKj"
    "9JxG+LIorlUFUaiJtdra9VW+Klzny6u1Mi+KVVHghVq5Qpe8Kv35h6tLBeqj4LmMMbMjn8GmNXPMefQ9"
    "GkUHG9BcCPldHE1qc1GSYBNZCDeOBDqhc0V5go1gNsTzKMAzakBReLBqcyH4hSSK9I4oNlhZYeyPUSwf"
    "xQYrKIzdSEWwQhQbzPww9psothLFBnN3OoSdT6NopUTBwZRaDN/rAPi/k70pp9PFo9JIXBshuci8G/fn"
    "tcxRqae9Xz+d8a/9t14q7WM4b7+/91+AKENR"
)
LEGACY_FILE = recorded(
    "eNp9kklv00AUx701ATctIawtW1kKKUtI3CQkl4YiVKkaltZcfEGWaw+1wfHk2eMikCrl0lA4cubAkW/A"
    "td+jF658BCQOPNvphgIjvxl5lv/vvf9MX/qk+r+/LP2aef1tZarSl57+lLHfBKFsFAVB6IWMM5v55gYN"
    "I48FIOIGYwJXfI9zn5o0cDwrAGnbUHGSv+tRM/Le0wjkTVDKxhhORi4LOYwRyZDxzws45IhiKIkGC9Yh"
    "T5Q43mMmIhG3ODUdz+Yg2sj2qc0RHanPQ4eG1HmMKypIczrIZaOEB7rMiX1asVmwUXlLvXWXg2JzFtpu"
    "xYy550eqGdK12PMds2eFVpdyGqow9o8tnAYRC80NTYVcuWzk04xYaK1TyGdH1CWfWfxFNqnCMWMS97Tr"
    "1bY2325h12hocDwt1u7FoJLcMw7jq0QgEpEHUCAyEQcw8dFNSpjkcEKH4nb6c/IDlHQ4leoNi4p46DnU"
    "gdMuJuPm3UOwequhVbV2swpnXJUUEHJ2laDNRBrAORyUAZzPIFMcpnW4kN7bnq5roZVw8X+yl4ayl5Pc"
    "lS24QsQtmMkkr3K4psN1Y/xAcu1VrQk3MsGhUY9Sp2rNfa9mj3jVajdrNQ1uIkdCzq3Uoy0oJ5y5jHOb"
    "wx0d7hrTB5wg7pprFrddGpk8tOw3WMe9I9gn+K72kZW/rqfeeNCE+4gUEVlF5NwQVeOg6TAfp4+W9pjt"
    "Qp3IydN8mTzNEYmLo25eGsWTR/mr0IokZG2ns7KTEw7a7HJpYXb588L37i6OpU6w2+yIw7X8cCwIh1u/"
    "g91D/DD6GF8xdjB+YAiLglDEmMGoLv4BZYEHFA=="
)
TRUTH = {
    "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3) / np.float32(7),
    "strided": np.array([[5, 9], [7, 11]], np.float32),
    "shared": np.arange(4, dtype=np.float32),
    "bf16": np.array([1.5, -3.25], ml_dtypes.bfloat16),
    "num_batches_tracked": np.array(7),
}
GENUINE = pytest.mark.parametrize("data", [ZIP_FILE, LEGACY_FILE], ids=["zip", "old"])


@pytest.fixture
def put(tmp_path):
    """bytes -> the path of a file that holds them."""

    def write(data, name="weights.pth"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def check_equal(found, truth):
    assert found.keys() == truth.keys()
    for name, array in truth.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


@GENUINE
def test_a_file_that_torch_wrote(put, data):
    check_equal(read(put(data)), TRUTH)
    check_equal(read(put(data, "named_otherwise.h5")), TRUTH)


@GENUINE
def test_a_file_cut_short_anywhere_is_refused(put, data):
    for length in range(0, len(data), 7):
        with pytest.raises(InputError, match=r"weights\.pth"):
            read(put(data[:length]))


@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")
@GENUINE
@few
@given(st.data())
def test_a_changed_byte_is_read_or_refused(put, data, draw):
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data) - 1))
        changed[at] = draw.draw(st.integers(0, 255))
    try:
        assert read(put(bytes(changed)))
    except InputError as error:
        assert "weights.pth" in str(error) and "\n" not in str(error)


def test_the_round_trip_of_torch_itself(put):
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    tensors = dict(model.state_dict())
    for name in ("float64", "float16", "int32", "int16", "int8", "uint8", "bool"):
        dtype = getattr(torch, name)
        tensors[name] = torch.randint(0, 2, (3, 2, 5), generator=generator).to(dtype)
    tensors["permuted"] = torch.randn(2, 3, 4, generator=generator).permute(2, 0, 1)
    tensors["empty"] = torch.zeros(0, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model.eval()(torch.ones(1, 3, 3, 3)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    content = {
        "net": tensors,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
    }
    for new in (True, False):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=new)
        truth = {name: tensor.numpy() for name, tensor in tensors.items()}
        check_equal(read(put(file.getvalue())), truth)


# ---------------------------------------------------------------------- safetensors


def test_safetensors(put):
    truth = {
        "features.0.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        "half": np.array([1.5, -2], np.float16),
        "bf16": np.array([[1.5], [-3.25]], ml_dtypes.bfloat16),
        "count": np.array(7),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 3), np.float32),
    }
    data = safetensors.numpy.save(truth)
    check_equal(read(put(data, "weights.bin")), truth)
    for length in range(0, len(data), 5):
        with pytest.raises(InputError):
            read(put(data[:length]))


def test_safetensors_that_lie_or_hold_nothing(put):
    def file(header, data=b""):
        return struct.pack("<Q", len(header)) + header.encode() + data

    entry = '{"w":{"dtype":"%s","shape":[%s],"data_offsets":[0,4]}}'
    assert read(put(file(entry % ("F32", "1"), bytes(4))))["w"] == 0
    with pytest.raises(InputError, match=r"w is F8_E5M2; save it as float32"):
        read(put(file(entry % ("F8_E5M2", "4"), bytes(4))))
    for header in (entry % ("F32", "2"), entry % ("F32", "-1"), entry % ("O", "1")):
        with pytest.raises(InputError, match="damaged"):
            read(put(file(header, bytes(4))))
    with pytest.raises(InputError, match="holds no weights"):
        read(put(file("{}")))
