"""Write docs/images/TASK.png, the README's picture, from the latest run's evaluation:  python docs/draw_readme_picture.py TASK"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cli.session import start_zenml

if __name__ == "__main__":
    task = sys.argv[1] if len(sys.argv) > 1 else "burn_scars"
    start_zenml()
    from zenml.client import Client

    from hls_foundry.evaluation.plots import examples

    runs = Client().list_pipeline_runs(pipeline="train", sort_by="desc:created", size=50, hydrate=True).items
    run = next(run for run in runs if run.name.startswith(task) and run.status.value == "completed")
    report = run.steps["evaluate"].outputs["evaluation on test chips"][0].load()
    target = Path(__file__).parent / "images" / f"{task}.png"
    target.parent.mkdir(exist_ok=True)
    examples(report).savefig(target, dpi=62)
    print(f"{target}: {target.stat().st_size / 1024:.0f} kB, run {run.name}")
