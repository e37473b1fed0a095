"""A training on a toy family as a program of its own: to be killed, or spread over devices.

python -m tests.toy_training RUN_DIR [--resume] [--pause S] [--devices N] [--process I --port P]
    [--mode MODE] [--chains-on DEVICE] [--fail STEP] [--fail-turn TURN]
"""

import argparse
import time
from pathlib import Path

import jax

parser = argparse.ArgumentParser()
parser.add_argument("run", type=Path)
parser.add_argument("--resume", action="store_true")
parser.add_argument("--mode", default="interleaved")
parser.add_argument("--chains-on", type=int, help="fail where the chains are elsewhere")
parser.add_argument("--pause", type=float, default=0.0)
parser.add_argument("--fail", type=int, default=-1)
parser.add_argument("--fail-turn", type=int, default=-1)
parser.add_argument("--devices", type=int, default=1)
parser.add_argument("--process", type=int)
parser.add_argument("--port", type=int)


def main() -> None:
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    if options.process is not None:
        jax.distributed.initialize(f"127.0.0.1:{options.port}", 2, options.process)

    from srdft import checkpoint
    from srdft.session import Session, build_schedule, interruptible
    from tests.toys import toy_trainer

    trainer, state = toy_trainer(steps=24, devices=jax.devices()[: options.devices])
    if options.resume:
        state, _ = checkpoint.load(options.run / checkpoint.LATEST, state)

    take_turn = trainer.take_turn

    def turn(model, samples, count, *, refresh):
        if count == options.fail_turn:
            raise RuntimeError("broken on purpose")
        turned = take_turn(model, samples, count, refresh=refresh)
        places = {device.id for device in turned.samples[0].chains.energy.devices()}
        if options.chains_on not in (None, *places):
            raise RuntimeError(f"the chains are on {places}")
        return turned

    trainer.take_turn = turn

    def report(metrics):
        print(metrics["step"], flush=True)
        time.sleep(options.pause)
        if metrics["step"] == options.fail:
            raise RuntimeError("broken on purpose")

    schedule = build_schedule(trainer, options.mode, 4)
    session = Session(trainer, schedule, options.run, checkpoint_every=5, report=report)
    with interruptible(session):
        session.run(state)


if __name__ == "__main__":
    main()
