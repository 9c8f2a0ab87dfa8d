"""One pretraining run, resumed where it stopped.

`plan` makes the run definite, `runner` puts its parts together, `loop` takes the steps.
"""

from pathlib import Path

from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.logging import print_log

from aligndet_train.box_domain import BoxDomainPretrainer, build_pretrainer
from aligndet_train.checkpoint import LAST
from aligndet_train.config import RunConfig
from aligndet_train.distributed import joined_processes, lost_ranks_explained
from aligndet_train.loop import run_to_the_end
from aligndet_train.optimizer import build_optimizer
from aligndet_train.plan import Plan, plan_run
from aligndet_train.run_options import RunOptions
from aligndet_train.runner import build_runner
from aligndet_train.work_folder import alone_in
from proposals.dataset import open_dataset
from proposals.errors import AlignDetError


def pretrain(run: RunConfig, data: Path, work_dir: Path, options: RunOptions) -> Path:
    """Run (or resume) box-domain pretraining; returns the path of the last checkpoint.

    Raises AlignDetError when ``work_dir`` holds another run, one is at work there, or the dataset or the backbone
    weights cannot be read.
    """
    last = work_dir / LAST
    explained = lost_ranks_explained(f"{last} holds what was done: the same command goes on from there")
    with joined_processes(options.launcher), explained:
        dataset = open_dataset(data)
        with alone_in(work_dir, options.launcher):
            plan = plan_run(run, dataset, work_dir, options)
            if plan.start < plan.steps:
                _train(plan)
            else:
                print_log(f"{work_dir} is complete already, {plan.steps} steps: nothing to do")
    return last


def _train(plan: Plan) -> None:
    model = _initialised(plan).to(get_device())
    optimizer = build_optimizer(model, plan.run.pretrain, get_world_size())
    plan.restore(model, optimizer)
    run_to_the_end(build_runner(plan, model, optimizer))


def _initialised(plan: Plan) -> BoxDomainPretrainer:
    run = plan.run
    try:
        # A checkpoint has the backbone, too: the file that it began from may be gone.
        return build_pretrainer(run.stock_model, run.pretrain, initialise=plan.saved is None)
    except OSError as error:
        raise AlignDetError(
            f"the backbone's initial weights ({run.stock_model['backbone'].get('init_cfg')}) could not be read: "
            f"{error}. Name a local file with --backbone-weights FILE, which also normalises images as its weights "
            "want them, or start from random weights with --cfg-options model.backbone.init_cfg=None"
        ) from error
