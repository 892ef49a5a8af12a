# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a negative prompt costs: one operation, its gradient, a layer, a model, a pipeline; and the report that says it.

python -m benchmarks                 all of these and the report, about 17 minutes on two cores
python -m benchmarks attention       one operation beside its rivals
python -m benchmarks gradient        a forward and its backward beside autograd through two attentions and the formula
python -m benchmarks joint           the attention of a whole joint layer, guided, beside one without guidance
python -m benchmarks growth          time and memory as the image and the batch grow
python -m benchmarks layer           one attention layer of six models, with its projections, norms and rotary embedding
python -m benchmarks model           one denoising step of six models: unguided, CFG, NAG as published, NAG ours
python -m benchmarks pipeline        a pipeline's call outside of its denoiser, unguided and guided
python -m benchmarks steps           one step of a pipeline beside its arithmetic: guided, as published, after the end
python -m benchmarks report          RESULTS.md and the plots from the CSVs that are there
python -m benchmarks verdicts FILE   takes in what `python -m nag_kernels.prove --report FILE` found on a GPU
"""

import argparse
from pathlib import Path

import torch

from benchmarks import (
    bench_attention,
    bench_gradient,
    bench_growth,
    bench_joint,
    bench_model,
    bench_pipeline,
    bench_steps,
    gpu_verdicts,
    report,
)

MEASURED = {
    "attention": bench_attention,
    "gradient": bench_gradient,
    "joint": bench_joint,
    "growth": bench_growth,
    "layer": bench_model,
    "model": bench_model,
    "pipeline": bench_pipeline,
    "steps": bench_steps,
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{bench_attention.help_text()}\n\n{bench_model.help_text()}",
    )  # fmt: skip
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    common.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads (default: its own)")
    common.add_argument("--no-csv", dest="csv", action="store_false", help="print only")
    kinds = parser.add_subparsers(
        dest="kind", metavar="{attention,gradient,joint,growth,layer,model,pipeline,steps,report,verdicts}"
    )
    for kind, module in MEASURED.items():
        each = kinds.add_parser(
            kind, parents=[common], description=module.__doc__, epilog=module.help_text(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        module.add_arguments(each)
    kinds.add_parser("report", description=report.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    taken = kinds.add_parser("verdicts", description=gpu_verdicts.__doc__,
                             formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    taken.add_argument("file", type=Path, help="the report")
    options = parser.parse_args(arguments)
    if options.kind == "verdicts":
        print("\n".join(str(path) for path in gpu_verdicts.take_in(options.file)))
        return
    if options.kind == "report":
        report.main()
        return
    if options.kind is not None:
        run(options)
        return
    failed = []
    for kind in MEASURED:
        print(f"\n== {kind}")
        try:
            run(parser.parse_args([kind]))
        except SystemExit as stopped:  # what was measured is still worth a report
            failed.append(f"{kind}: {stopped}")
    print("\n== report")
    report.main()
    if failed:
        raise SystemExit("\n".join(failed))


def run(options: argparse.Namespace) -> None:
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this torch sees no GPU; --device cpu runs the same code on a CPU")
    torch.set_num_threads(options.threads)
    MEASURED[options.kind].main(options)


if __name__ == "__main__":
    main()
