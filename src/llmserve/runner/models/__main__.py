"""python -m llmserve.runner.models --manifest FILE --name NAME --listen HOST:PORT --router HOST:PORT

The modelmanager of a cluster on Kubernetes (`deployment.k8s.manage_models`).
"""

from pathlib import Path

from llmserve.core.process import exit_process
from llmserve.k8s.api import KubeApi
from llmserve.k8s.connection import connect
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.leader import RouterAddresses
from llmserve.rpc.role import addresses, common_flags, open_manifest, run_role
from llmserve.runner.models.pods import PodProcesses
from llmserve.runner.models.role import Fetcher, ModelManagerRole


def main() -> int:
    parser = common_flags("runner.models")
    parser.add_argument("--router", type=addresses, required=True, help="HOST:PORT,... of the routers")
    flags = parser.parse_args()

    async def build() -> ModelManagerRole:
        manifest, _ = open_manifest(flags)
        api = KubeApi(connect(None), manifest.deployment.k8s.namespace)
        run_dir = Path(flags.run_dir)
        routers = RouterAddresses(flags.router, Credentials.read(CallerRole.MODELMANAGER, flags.name))
        return ModelManagerRole(
            manifest,
            PodProcesses(api, manifest, run_dir / "models", Fetcher(run_dir / "logs")),
            routers,
            listen=flags.listen,
            metrics_port=flags.metrics_port,
        )

    return run_role(flags.name, build)


if __name__ == "__main__":
    exit_process(main())
