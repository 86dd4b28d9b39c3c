"""Train an eraser from lists of concepts, without a server:

    python commands/train.py --checkpoint sd15.safetensors --name my_list names.txt more.txt
    python commands/train.py --model flux1-dev.safetensors --clip clip_l.safetensors t5xxl.safetensors \
        --clip-type flux --name my_list names.txt
    torchrun --nproc-per-node 4 commands/train.py ...    the same on four GPUs, or four processes on the CPU

This folder lies in the pack, the pack in ComfyUI's custom_nodes; elsewhere the variable PYTHONPATH names ComfyUI's
folder. Models are those that ComfyUI lists, or paths. Long lists are trained in parts, which lie in
models/unhype/parts, and merged into models/unhype. The same command goes on after an interrupt, and trains only what
is new after a change of a list. Where there are fewer parts than processes, and the objective draws pictures, all of
them train each part together and split its batches.
"""

import argparse
import importlib
import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PACK = Path(__file__).absolute().parent.parent
_PART = 32  # as many as the basis of one hypernet takes at rank 4
# What loads MODEL and CLIP as the options say.
Load = Callable[[argparse.Namespace], tuple[Any, Any]]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0] if __doc__ else "", epilog="See README.md.", allow_abbrev=False
    )
    parser.add_argument("lists", nargs="+", type=Path, help="files with a concept a line: 'cat -> tree'")
    parser.add_argument("--checkpoint", help="a checkpoint with model and text encoder")
    parser.add_argument("--model", help="or a diffusion model alone")
    parser.add_argument("--clip", nargs="+", default=[], help="and its text encoders")
    parser.add_argument("--clip-type", default="stable_diffusion", help="as in Load CLIP (default: %(default)s)")
    parser.add_argument("--preserve", type=Path, help="a file with what must stay, a line each")
    parser.add_argument("--name", required=True, help="of the file in models/unhype")
    parser.add_argument("--kind", default="object", help="object, person or style (default: %(default)s)")
    parser.add_argument(
        "--objective",
        default="attention",
        help="attention, or direct, paper or released, which draw pictures (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, help="of each part; as in Train Erasure by default")
    parser.add_argument("--part", type=int, default=_PART, help="concepts of one part (default: %(default)s)")
    return parser


def load_pack() -> str:
    """Import the pack with ComfyUI's folder on the path, as ComfyUI would; returns its name."""
    if __package__:
        return __package__.rpartition(".")[0]  # python -m: the package is imported already
    name = "unhype"
    if name in sys.modules:
        return name
    folders = [Path(folder) for folder in sys.path] + [PACK.parent.parent]
    comfyui = next((folder for folder in folders if (folder / "comfy" / "cli_args.py").is_file()), None)
    if comfyui is None:
        raise SystemExit("There is no ComfyUI here. Name its folder in the variable PYTHONPATH.")
    # First: the pack and ComfyUI both have a module `nodes`.
    sys.path.insert(0, str(comfyui))
    import torch
    import utils.extra_config
    from comfy.cli_args import args

    # ComfyUI looks at these when it is first imported.
    args.cpu = not torch.cuda.is_available() and not torch.backends.mps.is_available()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if (paths := comfyui / "extra_model_paths.yaml").is_file():
        utils.extra_config.load_extra_path_config(str(paths))
    spec = importlib.util.spec_from_file_location(name, PACK / "__init__.py", submodule_search_locations=[str(PACK)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return name


def load_models(options: argparse.Namespace) -> tuple[Any, Any]:
    """MODEL and CLIP by ComfyUI's own loaders."""
    import comfy.sd

    if options.checkpoint:
        model, clip, *_ = comfy.sd.load_checkpoint_guess_config(_file("checkpoints", options.checkpoint))
        return model, clip
    if not (options.model and options.clip):
        raise SystemExit("Give --checkpoint, or --model and --clip.")
    encoders = [_file("text_encoders", name) for name in options.clip]
    kind = getattr(comfy.sd.CLIPType, options.clip_type.upper(), None)
    if kind is None:
        raise SystemExit(f"--clip-type {options.clip_type} is none of Load CLIP's.")
    return comfy.sd.load_diffusion_model(_file("diffusion_models", options.model)), comfy.sd.load_clip(
        ckpt_paths=encoders, clip_type=kind
    )


def _file(kind: str, name: str) -> str:
    """A path, or a file as ComfyUI lists it."""
    import folder_paths

    if Path(name).is_file():
        return name
    found = folder_paths.get_full_path(kind, name)
    if found is None:
        raise SystemExit(f"There is no file '{name}', neither here nor in ComfyUI's models/{kind}.")
    return found


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None, load: Load = load_models) -> int:
    """Command line. load: what loads MODEL and CLIP."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)  # torchrun ends the others so; a checkpoint is then kept
    pack = load_pack()
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
    run = importlib.import_module(f"{pack}.commands.from_lists").run
    processes = importlib.import_module(f"{pack}.training.processes")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        processes.join_processes()
    try:
        return run(options, *load(options))
    except importlib.import_module(f"{pack}.hypernet.errors").UserError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
