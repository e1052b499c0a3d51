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
from conftest import check_equal
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
# It also saved a whole module as this, whose class no machine here has. Tensor number i
# in the order of its state dict is arange(n) + i. `blocks.1` is `stem` once more, whose
# values are the later ones. Its attributes are a device, a partial, a set, arrays of
# numpy and a function; it has a parameter None, one with an attribute, and a buffer
# that isn't saved.
MODULE_FILE = recorded(
    "eNqlWQl8HFUZ3yRtmg6laVJ6AqXcG6Bp7mxLadoAaWHTNN1SWI6yzO7OZqbZzOz3ZjYhhYW2sGmq"
    "IvVADhGKB4IKooKAVkWRCioKKogKCoIHKiIqlxd+33tvd2YnbQrJ5vd23r553/X/jvfNpDdcMSUQ"
    "qKoKjPnMCtQGVJbQjUFtaVJ11PpMf7qrc2bggpLPtvKEqTm20qM5CgTqtkNZDsqDUeLnMNUwDbMP"
    "Kkajh+DvWEZl6oDmaMyGKTmYGoxOxVU7oaY1qEw4Fsqqj2UdI20rMabFs0Y66ZLEhgxHj9mO6mgK"
    "TAseYLujmbbFYoNNClQFg9FpxB93qn0aTBckSlfaUp2NYlEBJVqGexrgkGgFXhOZLMwIVzhw6IZw"
    "IFyRh5nhsjxU70okrHRaSziGZdrKepbUmJY8w0igxbPqIlDjQG0EZo/q9OOwHMzh1ptWLKkl1GGY"
    "O2o7MC8C86NT+LKpwYKeLN8Ti2dTKYJjYQ4OD/L7/VrGgSN01F4vaNxtmX1FhY/kCjfCIn1GuNyB"
    "o0jR8jwsJkWP3sVVOMaBYyNwHGeX1lIOHC/Y6cLYJjhB0J4oaYNEWydoT3Lg5Aicko0eTuqhsrEM"
    "6mfYCKxT0DZmaw4sScRihLljmLGYYpP36zfDUv14NQ8NEWiMzub2qYn+IZWhH5kW0y2r34YmLqc5"
    "Wl1yX9xr4fdao3PpnmHHUtl0unQPtPVEZ9LdlMU8hO2cMBRdOOaWiBti0GfDMr5tefSIsdvU9JA6"
    "bMcwGNNaEk7lG1dEa70bXRtO47dXRhft93aJyA6+dVW0hrby8I0lMXIko9X8bmd0ju+uK+p0vuMM"
    "YRmGbnL/287k27qE28Zss+yCwDV831oRfQNWMpvWbDgrB2eL6EM/D0BYZHRn2kr0K9CNOb0uBz1B"
    "vWJUx7Rdr2Ow9upLdHT3hjxEIrBRFz49Rxf+26S39ejCI+fqAvLzdIFoVBfQna8LXC7QBQIX6sLO"
    "i3RhyGZdKHqxjrrFhG4JyxyES2Tim2a91L6e1pXT8aspqYCK2sZzkChomwxGK5F2SDP6dAe0g1UZ"
    "BVIludIMfZgrtQ7omCvBcHm4LFxB9cEIhqfjX0W4zIEtInP6HUhHYEBUAXMnWBHIcL3jhmoD9GQJ"
    "NyZws/PgRCArcRuUuA25uF0qcRuWuG2VuF0mcbtc4paTuF0hcbtS4raNcNvOqy7mZ0JXTVNL27Aj"
    "XBadgWtW1nEXrwqX8439GsPfMdvYqsHVZOYI5Dl4tsOMpAYjaHzZCOzkVTWjJpNU2kfF4i4eUEkj"
    "rVKNhPeJ1fdHFXEMmDaGIKbVB3bx5EXxGdSgwOMaLEOBEfggF9bHrGzGhmulpnIPhaoGu/mBsVVj"
    "lg0fii6mEGbaIFYkLVlghgsZDQMfj4IhI6HBh4OkCv058JFsXJZgNgAfHRtIcdVJ6HRT6aRZD84o"
    "pK7DkPpYDq4vhNQNQV3TS8OkBW4UJfUmWVI/TiX1ZhEYn3DglgjcKgJjz064LQKf1MHHoRU+JTh8"
    "WnL4DHG4XXD4rAN3ROBOweFzO+HzEfgCD6e7ghwkljVNDpKmmnB3Cd82+KLge4/k+yXi+2XB9ysO"
    "3BuB+7j3CzwGVQZfLWHRDvcLFg9IFg8Si68JFl93YG8EvsGrvZkdiHEMNTuGTk/0o8e/KVmJYysE"
    "30JW6IqHkFWdPHK+7cB3IvBwVqTGd/PwSAT2ydT4nkyNR93UeEymxvdlavxApsYPZWo8LlPjRzI1"
    "fixT4wmZGk9SavyE40YKpzBasgyL4E8xDagH0DD6frZm5Utv3Tf6ov4aj+sBawCPv+wAPLWm48Eb"
    "6XMTj1U1lTLwNH96lJvPTY4VcKTya8PPRzHmiKuacOCZsSGHy8YgzxklonVvUuAXGGy/zMGvCsH2"
    "LLn5OQHNr/Pwmwg8L6F5QULzWxeaFyU0L0lofieh+b2E5g8Smj9KaF6W0PxJQvNnguYvPL8NM5NW"
    "MX9eQQOy3ALdGoK/uhaksibvh9S0wrR0VoFXRftimEn4m2xcUtRqNWMv9hqiQIDF6Uix4e/7LeIO"
    "dotYgdfxlW5sORT4B6Lxzxy8XkDjDULjTYHGW3l4OwL/kmj8W6LxHxeN/0o0/ifReEegwQIYiQIQ"
    "VkZTjgkrpymHhVXQlCPDptCUg8Om0vSsHKvEa1B0jWwaXsazZaMGWYwcg0Cqwr1129l0vOSYQkyE"
    "UewQYrwwx2bQlUxjh+Isz2bid4RV0yq3kc2iKTeT1dC0YCmrpV/cWDabptxedhhNhclzXJPnuibP"
    "c02e75q8wDV5oTT5cLxKi4/Yr8VptFZlSre4sCOFqYu4qUd5TF3M5/7quYwdTYJmhCsddgzOeO8d"
    "Lh9hx+IPOnNH2HE449WCHV9GmXYCx+ZE/OZFkQVxtpPV8dWTiJm3vpZTw9zAThZCKhx2SkFIni0h"
    "EWV5Vl8UsJQLaOCsGosCmriAZr7agt9Ufllr0WNt3GPt/HbI9dgy12PLSzx2quuxFa7HTnM9ttL1"
    "WIfrsVWux1a7Hut0PXa69NgZ5DF5+hcqHDuTw1lsAIrrXbRekY3bmKX84YKtITbrspT6dOIO6fjA"
    "w9YWXa8ktUE8XBV2FomRD07sbI5BmGPQTTeoHgyo2FasI0peMCwL2y7stkRK9Ow3mOgEVtPGVlEW"
    "u9VhjdFRrLD1XEAvF7CBImkLrdTlWITUxZp9z74399z3yjV2j8M24lKcK29iZ2ezc2gLOmpTMXtV"
    "dm4hrOPsPLxoeRblvM8vgJdRHd1KW30GMriAdMUDIzNcH0tYTKsfyOKzj8qYOkx9JOY8tklZfCRk"
    "FxZ3KmZSbGAXEcSo/Ga6h/T4ZGgrmkkThV3s6hGjKVVKaqTMRnYJ/h5hKlcrzkMwwedJMgO7mvI8"
    "01xxSWc4g/xSxISCfn2I9VFcj+5kOiczOFkFF3Y524KXnp6es9/BD/8Kdzisn4DbtZmlOVDkwnWq"
    "bbOBgmI93EvMJMAcZnGYeZenYyghWkmbZXBxC6GwpWA20A+hP+OK2K7+Dt0rqpwKsaxUeZDvHPKo"
    "vIJdOkZlzNVhrvIWDmNt8fXFw3s65GR3B9tKQgSYl3G2l/Msz3H1K0UrENcYu2IcL9OLCqpuVxIv"
    "UktIdN+cVK1i21w527mcHXx+FZ9fTXUjXt8bnlZ13e233t2Ej4Q0eg/4BmZeYHrxDUx9itLCiVG7"
    "i3nR1TlVvIhpJHb3v/osiaCTbRx2CwPtLjv5WgSfe40+k9qbrs5m36udd/VpayEFOobgZXJf+bgK"
    "1AQ6igrEhx3NojcpXZ2nTkRu4ZM2HCetkQ75015cQK6sHFeHmYGVJW+1ljZ0dS6fhAKC6zaKtVWk"
    "RWbvow1UYWccRItQqRaNXZ0tE9KiTHIsl1fS4cHn3gjM4m/wxtehpVSHpq7OhsB7t59s39ZBcndv"
    "qHyKBFUdRO6KUrnNXZ2hwMTxX7waGxMcq3D04rgERwbHNhyjOHbjuAHHHhx34LgHxwM4HsLxKI4n"
    "cDyzmvQ/59L+fWtRw7XvTf+WyekvdCf5K683Xp8Afq2Tky9wI/l3j+66dwLy2yYnX/iM5O/bu0Cf"
    "gPz2yckX8ULyl9952wkTkB+ajPxqT94+8nj53gnIXzY5+wNo/6zV/jwife6aMvTCfNwwf1x9qgMn"
    "+2oZltQTA+9aviubZL6daKg7eP2s9hxlxRNxQudXs0JSn7ylb9PBz69FgSb3AOWm2hozir1qzEh2"
    "dda/RyUa25e1hVqaWkOhppa2hubWlmXNTQ0tje2h9oa2UKitobGtrbmltYkf89euOe6xIOoR5FqW"
    "8ZJf0NPbUcwao7n//zh+am8DMa+EckdN4EA9iJ+JtwlYWMLkSS+TMZ2Hn4/3IK8p4ROpDYxtIPzk"
    "3hN4Zgn507UB39nvp/WenKW0F8320Tb6ab2nXynt837aJj+t9+QppY0e5qNt9tN6T41S2vlzfLQt"
    "flpvxS+lvcFP2+qn9VZrn9y5Pto2P6230vrk+mnb/bTeKumTO89HG/LTeiuaT66fdpmf1luZqkto"
    "g/P9sTEmsLwFppT4Zg/xARLLm/eLSohrFwQOUpF6w5WVpxTqV8USTy9eeg1OEdcHFhTOo8ppPHaP"
    "FL/Fo8XUSkFTw/eLvf8HWRbLwQ=="
)
MODULE = {
    "scale": (3,),
    "kept": (2,),
    "stem.conv.weight": (2, 1, 3, 3),
    **{f"stem.norm.{name}": (2,) for name in ("weight", "bias")},
    **{f"stem.norm.running_{name}": (2,) for name in ("mean", "var")},
    "stem.norm.num_batches_tracked": (),
    "blocks.0.0.weight": (3, 2),
    "blocks.0.0.bias": (3,),
}
GENUINE = pytest.mark.parametrize("data", [ZIP_FILE, LEGACY_FILE], ids=["zip", "old"])


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


def module_truth():
    truth = {}
    for i, (name, shape) in enumerate(MODULE.items()):
        whole = name == "kept" or name.endswith("tracked")
        # The six arrays of `stem` were filled as those of `blocks.1`.
        first = i + 8 if name.startswith("stem.") else i
        values = np.arange(first, first + np.prod(shape, dtype=int)).reshape(shape)
        truth[name] = values.astype(np.int64 if whole else np.float32)
    for name, array in [*truth.items()]:
        if name.startswith("stem."):
            truth[name.replace("stem.", "blocks.1.")] = array
    return truth


def test_a_whole_module_that_torch_wrote(put):
    check_equal(read(put(MODULE_FILE)), module_truth())
    assert list(read(put(MODULE_FILE)))[:2] == ["scale", "kept"]  # As state_dict().


@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")
@few
@given(st.data())
def test_a_changed_byte_of_a_module_is_read_or_refused(put, draw):
    changed = bytearray(MODULE_FILE)
    for _ in range(draw.draw(st.integers(1, 3))):
        changed[draw.draw(st.integers(0, len(changed) - 1))] = draw.draw(
            st.integers(0, 255)
        )
    try:
        assert read(put(bytes(changed)))
    except InputError as error:
        assert "weights.pth" in str(error) and "\n" not in str(error)


def test_the_modules_of_torch_itself(put):
    """Whole, inside a checkpoint and under DataParallel, in both formats."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ModuleDict({"a": nn.MultiheadAttention(4, 2), "b": nn.LayerNorm(4)}),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    )
    truth = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    for content in (net, {"model": net, "epoch": 3}, nn.DataParallel(net)):
        for new in (True, False):
            file = io.BytesIO()
            torch.save(content, file, _use_new_zipfile_serialization=new)
            check_equal(read(put(file.getvalue())), truth)


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
