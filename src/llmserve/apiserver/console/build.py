"""Builds what the routes of the console share."""

from llmserve.apiserver.console.bench import BenchRuns
from llmserve.apiserver.console.look import ClusterLook
from llmserve.apiserver.console.manifest import ManifestFile
from llmserve.apiserver.console.processes import ClusterFile
from llmserve.apiserver.console.routes import ConsoleData
from llmserve.apiserver.explain.records import RecordFinder
from llmserve.apiserver.options import ApiserverOptions
from llmserve.config.schema import Manifest
from llmserve.rpc.role import beside


def build_console(
    options: ApiserverOptions, manifest: Manifest, finder: RecordFinder, file: ManifestFile
) -> ConsoleData:
    """Is called inside a running loop. The caller closes what this returns."""
    look = ClusterLook(manifest.metadata.name, options.name, options.routers, ClusterFile(options.run_dir))
    tls = manifest.security.tls
    certificate = beside(options.manifest, tls.certificate) if tls and options.manifest else None
    bench = BenchRuns(options.run_dir, lambda: _public_url(options, manifest, look), certificate)
    return ConsoleData(look, options.routers, finder, file, bench)


def _public_url(options: ApiserverOptions, manifest: Manifest, look: ClusterLook) -> str:
    """Returns the address of the cluster's API, or where no supervisor says it, that of this apiserver."""
    table = look.processes
    if table is not None and table.base_urls:
        return table.base_urls[0]
    scheme = "http" if manifest.security.tls is None else "https"
    return f"{scheme}://{options.http}"
