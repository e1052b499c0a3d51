"""medjax: train, evaluate and explain models that read medical images.

  python launch.py prepare  --config=configs/X.py
  python launch.py explore  --config=configs/X.py --workdir=DIR
  python launch.py train    --config=configs/X.py --workdir=DIR
  python launch.py evaluate --workdir=DIR [--split=test] [--localise] [--against=DIR]
                            [--corrupt]
  python launch.py predict  --workdir=DIR --images=FILE_OR_DIR --out=CSV [--explain=DIR]
  python launch.py convert  --source=FILE [--model=NAME --out=DIR] [--channels=3]
  python launch.py join     --run=DIR --run=DIR --workdir=DIR
  python launch.py export   --workdir=DIR --out=DIR
  python launch.py gallery  --images=FILE_OR_DIR --out=HTML [--modality=NAME]
  python launch.py sweep    --config=configs/X.py --workdir=DIR [--executor=NAME]

prepare   raw files -> records; train does it too where they are missing
explore   what the data look like: one page, and the same as JSON; with
          --audit-augment what the ops of a finished run do to its predictions; of
          scans to be segmented, their fingerprint and the patches it proposes
train     trains, or goes on with the run that the workdir holds; reports the test split;
          by several processes where each is given --coordinator=HOST:PORT --processes=N
          --process=K, or --cluster under SLURM or on a TPU pod
evaluate  reports one split of a finished run (--split=target: the test images of the
          data that it was adapted to); with --config, all films of that config's data
          instead, as an external test, which refuses images that the run has seen:
          by patient id, but with --other-hospital, and by picture; --allow-overlap
          reports them under a warning. With --localise whether the heatmaps lie in the
          boxes of films that have some, and depend on what was learnt; with --corrupt
          what noise, blur and the like cost it (of --films=N at most); with --against
          what two runs said of the same images: differences, intervals and p values
predict   new PNG, JPEG or DICOM files -> one probability a finding; with --explain a
          picture of where the evidence lies for each finding that is seen; of patients'
          folders of scans, masks and probabilities as NIfTI files in the folder --out
join      finished runs, such as those of all folds, as one ensemble; it is tested on
          images that none of them trained or validated on
export    a finished run as a folder that jax and numpy alone can run: StableHLO for
          cpu, cuda and tpu, weights, predict.py and a model card; for transfer.init
convert   weights of torchvision, timm or Keras -> a checkpoint for transfer.init;
          --source=imagenet takes published ones: of a pip package, or downloaded;
          without --model it lists what the file holds, and which networks it fits
gallery   image files or NIfTI volumes -> a page of what each modality's augmentations
          do to them (--draws of each), and why it leaves others out
sweep     every run that the config's sweep() asks for, and a page that compares them;
          goes on where it was; --executor=local (one after the other), population (as
          one program) or slurm (--slurm=timeout_min=120 --slurm=gpus_per_node=1 ...)

With --deterministic a GPU gives the same bits in every run, more slowly; other devices
always do. Any field of the config is a flag: --config.optim.learning_rate=3e-4. The
config.json of a run is a config too: train --config=DIR/config.json --workdir=NEW trains
it again.
"""

import medjax  # First, for its way with memory.

# isort: split
import ast
import contextlib
import copy
import errno
import inspect
import logging
import os
import runpy
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from configs import base
from medjax import buckets, tasks
from medjax.commands import convert, evaluate, explore, export, gallery, join, predict
from medjax.commands.sweep import EXECUTORS
from medjax.config import Config
from medjax.errors import InputError
from medjax.evaluation.heatmaps import METHODS, ROLLOUT
from medjax.tasks.external import Claim
from medjax.training import devices

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "a file of configs/")
flags.DEFINE_string("workdir", None, "folder of the run")
flags.DEFINE_string(
    "split", "test", "evaluate: train, validation, test or target; or a name"
)
flags.DEFINE_bool(
    "other-hospital", False, "evaluate --config: equal patient ids are other people's"
)
flags.DEFINE_bool(
    "allow-overlap", False, "evaluate --config: report images that the run has seen"
)
flags.DEFINE_string("against", None, "evaluate: folder of the run to compare with")
flags.DEFINE_bool("localise", False, "evaluate: the heatmaps, by the films' boxes")
flags.DEFINE_bool("corrupt", False, "evaluate: on corrupted films")
flags.DEFINE_integer("films", 0, "evaluate --corrupt: so many at most; 0: all")
flags.DEFINE_string("explain", None, "predict: folder of the heatmaps")
flags.DEFINE_enum("method", "grad_cam", [*METHODS, ROLLOUT], "of the heatmaps")
flags.DEFINE_string(
    "stage", None, "of the heatmaps: whose output; without it, the last"
)
flags.DEFINE_bool("audit-augment", False, "explore: the augmentations of a run")
flags.DEFINE_multi_string("run", [], "join: the folder of a run; repeat it")
flags.DEFINE_multi_string("images", [], "a file or a folder; may be repeated")
flags.DEFINE_string("out", None, "the file or folder to write")
flags.DEFINE_string(
    "source", None, "convert: .pth, .safetensors, .h5 or .keras; or imagenet"
)
flags.DEFINE_string("model", None, "convert: the architecture, such as densenet121")
flags.DEFINE_integer("channels", 3, "convert: of the images that the model is for")
flags.DEFINE_string("modality", None, "gallery: of this one; without it, of all")
flags.DEFINE_integer("draws", 6, "gallery: of each policy on each image")
flags.DEFINE_integer("seed", 0, "gallery: of the draws")
flags.DEFINE_enum("executor", "local", EXECUTORS, "sweep: how its runs are executed")
flags.DEFINE_string("baseline", "", "sweep: the arm to compare with; '': the first")
flags.DEFINE_multi_string(
    "slurm", [], "sweep: NAME=VALUE of submitit, slurm_partition=gpu say; repeatable"
)
flags.DEFINE_string("profile", None, "train: folder for a trace of ten steps")
flags.DEFINE_bool("deterministic", False, "the same bits in every run on a GPU: slower")
flags.DEFINE_string("coordinator", None, "train: HOST:PORT of process 0, of several")
flags.DEFINE_integer("processes", None, "train: how many processes train the one run")
flags.DEFINE_integer("process", None, "train: the number of this one, from 0 on")
flags.DEFINE_bool("cluster", False, "train: meet those that SLURM or a TPU pod started")
ON_DISK = ("against", "explain", "images", "out", "profile", "run", "source")
OPEN = contextlib.ExitStack()  # A run's folder in a bucket, until the command ends.


def required(name: str):
    """The value of a flag that this command can't do without."""
    value = FLAGS[name].value
    if not value:
        raise InputError(f"--{name} is missing: see python launch.py --help")
    return value


def workdir() -> Path:
    """The folder of the run, which may not be there yet; of a bucket its local copy."""
    path = OPEN.enter_context(buckets.opened(required("workdir")))
    if path.exists() and not path.is_dir():
        raise InputError(f"--workdir={path}: is a file: give a folder")
    return path


def config() -> Config:
    """The config; absl reports a file that it can't load only when it is used."""
    value = FLAGS["config"].value
    if FLAGS["config"].present and (value is None or isinstance(value, dict)):
        raise InputError(
            "--config: the file has no get_config() that returns a config: see "
            "configs/base.py"
        )
    value = required("config")
    try:
        value.to_dict()
    except OSError as error:
        why = " ".join(str(error.__cause__ or error).split())
        raise InputError(f"--config: {of_recipe(error) or why}") from None
    try:
        if config_flags.get_config_filename(FLAGS["config"]).endswith(".json"):
            base.check(value)  # A recipe may leave out what its functions default to.
    except ValueError as error:
        raise InputError(f"--config: {error}") from None
    return value


def arms() -> list[dict]:
    """The overrides that sweep() of the config's file yields."""
    path, *argument = config_flags.get_config_filename(FLAGS["config"]).split(":", 1)
    try:
        module = runpy.run_path(path) if path.endswith(".py") else {}
        if "sweep" not in module:
            raise InputError(
                f"--config={path}: has no sweep(): write one, see configs/"
            )
        takes = inspect.signature(module["sweep"]).parameters
        # One dict may be changed between two yields.
        return [copy.copy(arm) for arm in module["sweep"](*argument[: len(takes)])]
    except Exception as error:
        if why := of_recipe(error):
            raise InputError(f"--config: {why}") from None
        raise


def slurm() -> dict:
    """The values of --slurm; what isn't a number or the like is text."""
    options = {}
    for text in FLAGS.slurm:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--slurm={text}: give NAME=VALUE")
        try:
            options[name] = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            options[name] = value
    return options


def run_prepare() -> None:
    tasks.of(config()).prepare(config())


def run_explore() -> None:
    if FLAGS["audit-augment"].value:
        if FLAGS["config"].present:
            raise InputError(
                "--audit-augment: reads the run's own data: leave out --config"
            )
        explore.audit_augment(workdir())
    else:
        explore.explore(config(), workdir())


def run_train() -> None:
    medjax.launch(config(), workdir(), profile=FLAGS.profile)


def run_evaluate() -> None:
    other = config() if FLAGS.config else None
    seen = Claim(FLAGS["other-hospital"].value, FLAGS["allow-overlap"].value)
    images = evaluate.EvaluatedImages(FLAGS.split, other, seen)
    if FLAGS.corrupt and FLAGS.localise:
        raise InputError("--corrupt: goes without --localise: one at a time")
    if FLAGS.against:
        if other is not None or FLAGS.localise or FLAGS.corrupt:
            raise InputError(
                "--against: goes with --workdir and --split alone; on other data "
                "evaluate each run by --config and --split=NAME first"
            )
        evaluate.compare(workdir(), Path(FLAGS.against), split=FLAGS.split)
    elif FLAGS.corrupt:
        evaluate.beside("--corrupt", workdir(), images, most=FLAGS.films)
    elif FLAGS.localise:
        how = {"method": FLAGS.method, "stage": FLAGS.stage}
        evaluate.beside("--localise", workdir(), images, **how)
    else:
        evaluate.evaluate(workdir(), images)


def run_predict() -> int:
    unread = predict.predict(
        workdir(),
        images=required("images"),
        out=Path(FLAGS.out or "predictions.csv"),
        explain=Path(FLAGS.explain) if FLAGS.explain else None,
        method=FLAGS.method,
        stage=FLAGS.stage,
    )
    for line in unread:
        print(f"unreadable: {line}", file=sys.stderr)
    return 3 if unread else 0


def run_join() -> None:
    join.join([Path(run) for run in FLAGS.run], workdir())


def run_export() -> None:
    export.export(workdir(), Path(required("out")))


def run_convert() -> None:
    source = Path(required("source"))
    if FLAGS.model or FLAGS.out:
        out = Path(required("out"))
        convert.convert(source, required("model"), out, channels=FLAGS.channels)
    else:
        convert.describe(source)


def run_gallery() -> None:
    page = gallery.gallery(
        required("images"),
        Path(FLAGS.out or "gallery.html"),
        modality=FLAGS.modality,
        draws=FLAGS.draws,
        seed=FLAGS.seed,
    )
    print(f"gallery: {page}")


def run_sweep() -> int:
    buckets.on_disk("--workdir", required("workdir"))  # An arm may be a process.
    result = medjax.sweep(
        config(),
        arms(),
        workdir(),
        executor=FLAGS.executor,
        baseline=FLAGS.baseline,
        slurm=slurm(),
    )
    failed = result["incomparable"] or any(run["error"] for run in result["runs"])
    return 3 if failed else 0


# Each command, and the flags that it takes; all take --deterministic. `prepare` is
# typed as the `train` that follows it, so it may name the run.
COMMANDS = {
    "prepare": (run_prepare, ["config", "workdir"]),
    "explore": (run_explore, ["config", "workdir", "audit-augment"]),
    "train": (
        run_train,
        ["config", "workdir", "profile", "coordinator", "processes", "process"]
        + ["cluster"],
    ),
    "evaluate": (
        run_evaluate,
        ["config", "workdir", "split", "other-hospital", "allow-overlap", "against"]
        + ["localise", "method", "stage", "corrupt", "films"],
    ),
    "predict": (
        run_predict,
        ["workdir", "images", "out", "explain", "method", "stage"],
    ),
    "join": (run_join, ["run", "workdir"]),
    "export": (run_export, ["workdir", "out"]),
    "convert": (run_convert, ["source", "model", "out", "channels"]),
    "gallery": (run_gallery, ["images", "out", "modality", "draws", "seed"]),
    "sweep": (run_sweep, ["config", "workdir", "executor", "baseline", "slurm"]),
}
# Flags that say more of another one, and mean nothing without it.
ONLY_WITH = {
    "other-hospital": ["config"],
    "allow-overlap": ["config"],
    "method": ["localise", "explain"],
    "stage": ["localise", "explain"],
    "films": ["corrupt"],
    "channels": ["model"],
    "processes": ["coordinator", "cluster"],
    "process": ["coordinator", "cluster"],
}


def check_flags(command: str) -> None:
    """Refuses a flag that this command doesn't take, or takes only with another one."""
    taken = COMMANDS[command][1]
    for name in dict.fromkeys(flag for _, names in COMMANDS.values() for flag in names):
        others = [other for other in ONLY_WITH.get(name, ()) if other in taken]
        if not FLAGS[name].present:
            continue
        if name not in taken:
            where = [key for key, (_, names) in COMMANDS.items() if name in names]
            raise InputError(f"--{name}: is only for {', '.join(where)}: leave it out")
        if others and not any(FLAGS[other].value for other in others):
            raise InputError(f"--{name}: only goes with --{' or --'.join(others)}")


def main(arguments: list[str]) -> int:
    """Sets up the process, runs one command, turns a user's mistake into one line."""
    absl.logging.set_verbosity(absl.logging.ERROR)  # The libraries chat at INFO.
    if hasattr(sys.stdout, "reconfigure"):  # Names of files may not be UTF-8.
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("medjax").addHandler(handler)
    logging.getLogger("medjax").setLevel(logging.INFO)
    logging.getLogger("medjax").propagate = False
    devices.keep()
    if FLAGS.deterministic and not devices.deterministic():
        print("note: --deterministic: no GPU is here, and other devices always are")
    together = FLAGS.cluster or FLAGS.coordinator is not None
    try:
        if len(arguments) != 2 or arguments[1] not in COMMANDS:
            *others, last = COMMANDS
            given = f"{' '.join(arguments[1:])!r}: " if arguments[1:] else ""
            raise InputError(f"{given}give one command: {', '.join(others)} or {last}")
        check_flags(arguments[1])
        if together:
            devices.join(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
        for name in ON_DISK:
            value = FLAGS[name].value or ()
            for path in [value] if isinstance(value, str) else value:
                buckets.on_disk(f"--{name}", path)
        if arguments[1] in ("evaluate", "join", "predict"):
            devices.use_cores()
        speaks = not together or devices.first()
        quiet = contextlib.nullcontext() if speaks else contextlib.redirect_stdout(None)
        with quiet, OPEN:
            return COMMANDS[arguments[1]][0]() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Exception as error:
        if (why := refusal(error)) and not together:
            print(f"error: {why}", file=sys.stderr)
            return 2
        if not together:
            raise
        traceback.print_exc()
        print(
            "error: this process failed, perhaps because another one ended: see their "
            "logs; the same commands go on from the last checkpoint",
            file=sys.stderr,
        )
        code = 1
    if together:  # Without the farewell, for which the others would have to come too.
        sys.stderr.flush()
        os._exit(code)
    return code


# What ml_collections and runpy call the module of a config's file.
RECIPE = ("config_config", "<run_path>")
# What an operating system refuses, and the remedy.
SYSTEM = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "use another file system",
    errno.EROFS: "choose a folder that can be written",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.ENOTDIR: "a part of this path is a file: choose another place",
    errno.EEXIST: "a folder of this name is needed: choose another place",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk or the network is at fault",
}


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it was raised from."""
    while error is not None:
        yield error
        context = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or context


def of_recipe(error: BaseException) -> str:
    """Where and why the file of a config failed; '' for any other error.

    The line is the innermost one in the file's folder: a recipe may import others.
    """
    for each in chain(error):
        frames = [*traceback.walk_tb(each.__traceback__)]
        files = [(frame.f_code.co_filename, line) for frame, line in frames]
        names = [frame.f_globals.get("__name__") for frame, _ in frames]
        recipes = [file for file, name in zip(files, names) if name in RECIPE]
        if isinstance(each, SyntaxError):
            recipes = [(each.filename, each.lineno)]
        if recipes and recipes[0][0] != medjax.config.__file__:
            folder = os.path.dirname(recipes[0][0])
            inside = [file for file in files if os.path.dirname(file[0]) == folder]
            file, line = [*recipes[:1], *inside][-1]
            what = "" if isinstance(each, InputError) else f"{type(each).__name__}: "
            return f"{file}, line {line}: {what}{_one_line(each)}"
    return ""


def refusal(error: BaseException) -> str:
    """Which file the operating system refused and why; '' for any other error.

    Libraries wrap its errors in their own, and some keep nothing but their text. A file
    that isn't there is none, but a folder that can't be made is, as below /proc.
    """
    for each in chain(error):
        calls = [f.f_code.co_name for f, _ in traceback.walk_tb(each.__traceback__)]
        making = calls[-1:] in (["mkdir"], ["makedirs"])
        if making and isinstance(each, FileNotFoundError):
            return f"{each.filename}: can't be made: choose another place"
        for number, remedy in SYSTEM.items():
            cause = os.strerror(number)
            if getattr(each, "errno", None) == number or cause in str(each):
                file = getattr(each, "filename", None)
                text = f"{file}: {cause}" if file else " ".join(str(each).split())
                return f"{text}: {remedy}, and give the same command again"
    return ""


def saved_config(argument: str) -> str:
    """--config=RUN/config.json, as ml_collections takes it: it only loads Python."""
    name, equals, value = argument.partition("=")
    if equals and name.lstrip("-") == "config" and value.endswith(".json"):
        return f"{name}={medjax.config.__file__}:{value}"
    return argument


def parse(arguments: list[str]) -> list[str]:
    """Reads the flags; an unknown field of the config is an error."""
    arguments = sys.argv = [saved_config(argument) for argument in arguments]
    given = {argument.lstrip("-") for argument in arguments[1:]}
    if given & {"h", "help", "helpfull", "helpshort"}:
        print(__doc__)
        for command in given & {*COMMANDS}:
            for name in ["deterministic", *COMMANDS[command][1]]:
                print(f"--{name}: {FLAGS[name].help}")
        sys.exit(0)
    try:
        return FLAGS(arguments)
    except Exception as error:
        if recipe := of_recipe(error):
            why = recipe
        elif isinstance(error, AttributeError | KeyError):  # 'optm' Did you mean ...?
            why = f"the config has no field {_one_line(error)}"
        elif isinstance(error, flags.Error | OSError | TypeError | ValueError):
            why = str(error).strip().splitlines()[-1]
        else:
            raise
    print(f"error: {' '.join(arguments[1:])}: {why}", file=sys.stderr)
    sys.exit(2)


def _one_line(error: Exception) -> str:
    """The message of an error that ml_collections wraps in up to two KeyErrors."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = error.args[0] if isinstance(error, AttributeError | KeyError) else error
    return ". ".join(str(text).splitlines())


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
