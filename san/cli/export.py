r"""Export a model for other runtimes: ONNX files, or archives of torch.export.

Examples:
  san export --model san_vit_b_16 --vocab "car, road, sky" --out exported
  san export --model my_san/ --precision float16,int8 --images street.jpg square.jpg --vocab "car, road" --out exported
  san export --model my_san/ --format pt2,aoti --out exported

onnx   image.onnx: pixels to mask logits and embeddings of the masks; text.onnx: token ids of names to text embeddings;
       labels.onnx: both to a label map. Any size of image, any number of classes. Needs the extra "export".
pt2    image.pt2, an archive of torch.export: the network without the steps before and after it
aoti   image_compiled.pt2, the same compiled by AOTInductor for this kind of CPU; needs a C++ compiler

--vocab also writes vocabulary.npz, the embeddings of these classes, so that the label map can be computed with numpy
(examples/onnx_numpy.py). The ONNX files are run with onnxruntime and compared with the model: the table shows errors,
equal labels, and CPU time per picture. See docs/export.md.

Exit codes: 0 all done, 1 error, 2 wrong command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
from functools import partial

from san.cli.options import (
    add_model_options,
    add_word_options,
    formats_option,
    load_predictor,
    path_option,
    positive_option,
    read_words,
)
from san.export.formats import FORMATS, OPSET, OPSETS, PRECISIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--out", type=path_option, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument(
        "--format",
        type=partial(formats_option, known=FORMATS),
        default="onnx",
        metavar="LIST",
        help=f"some of {', '.join(FORMATS)} (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that has files")
    add_word_options(parser.add_argument_group("words whose embeddings are written, one of:"))
    onnx = parser.add_argument_group("ONNX files")
    onnx.add_argument(
        "--precision",
        type=partial(formats_option, known=PRECISIONS),
        default="float32",
        metavar="LIST",
        help=f"some of {', '.join(PRECISIONS)}; float32 is always written (default: %(default)s)",
    )
    onnx.add_argument(
        "--opset",
        type=positive_option,
        default=OPSET,
        metavar="N",
        help=f"opset of the files, {OPSETS.start} to {OPSETS.stop - 1} (default: %(default)s)",
    )
    onnx.add_argument(
        "--images",
        nargs="+",
        type=path_option,
        default=[],
        metavar="IMAGE",
        help="pictures on which the files are compared with the model (default: three patterns of odd sizes)",
    )
    onnx.add_argument("--no-check", action="store_true", help="do not run the files")
    add_model_options(parser, untrained=True)


def run(args: argparse.Namespace) -> int:
    """Export and compare; return the exit code.

    Raises:
        ValueError, OSError: the folder has files, or the model or an option has an error.
    """
    if args.vocab is not None and args.vocab_file is not None:
        raise ValueError("--vocab and --vocab-file are given; give one of them")
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())) and not args.overwrite:
        raise ValueError(f"{args.out} exists; choose another --out, or give --overwrite")
    if args.compile:
        raise ValueError("--compile compiles the model that is exported; leave it out, or give --format aoti")

    from san.export.folder import export_model
    from san.io.image_files import read_image

    pictures = [read_image(path) for path in args.images]
    vocabulary = None if args.vocab is None and args.vocab_file is None else read_words(args)
    found = export_model(
        load_predictor(args),
        args.out,
        formats=args.format,
        precisions=args.precision,
        vocabulary=vocabulary,
        opset=args.opset,
        pictures=pictures,
        check=not args.no_check,
    )
    for path in sorted(args.out.iterdir()):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if found:
        print("\nprecision  masks    [SLS]    text     same labels  CPU s  PyTorch's")
        for each in found:
            errors = "  ".join(f"{error:.1e}" for error in (each.mask_error, each.sls_error, each.text_error))
            times = f"{each.seconds:5.2f}  {each.torch_seconds:.2f}"
            print(f"{each.precision:9}  {errors}  {100 * each.labels:9.3f} %  {times}")
    return 0
