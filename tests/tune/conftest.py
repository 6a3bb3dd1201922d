import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def ray_here():
    """One small Ray for a file's tests of the search; its workers can import fake_candidates.

    It ends with the file: what the process tests afterwards finds no Ray running, whichever files share it.
    """
    from edgequant_tune.driver import ray_cluster

    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), before]))
    try:
        with ray_cluster() as resources:
            yield resources
    finally:
        os.environ["PYTHONPATH"] = before
