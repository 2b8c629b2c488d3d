"""The files of examples/serving against the server: ports, paths, options, metrics, and the schemas of Kubernetes."""

import copy
import json
import os
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from hfgen.commands.serve import API_KEY, ServeOptions
from tests.helpers.commands import assert_parses
from tests.helpers.toys import ROOT

FOLDER = ROOT / "examples" / "serving"
BASE, GPU = FOLDER / "kubernetes" / "base", FOLDER / "kubernetes" / "gpu"
VERSIONS = ("1.29", "1.33")
"""Versions of Kubernetes whose schemas the manifests are checked against."""


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


# --- Dockerfile -------------------------------------------------------------------------------------------------------


def instructions():
    """Return (instruction, text) of each instruction of the Dockerfile."""
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.strip().split(None, 1)) for line in lines]


def last(name):
    """Return the text of the last instruction of this name: the one that counts."""
    return [text for each, text in instructions() if each == name][-1]


def words_of_image():
    return json.loads(last("ENTRYPOINT")) + json.loads(last("CMD"))


def option_of(words, name):
    return words[words.index(name) + 1]


def test_the_image_runs_the_server_at_the_port_that_it_exposes():
    words = words_of_image()
    assert_parses(words)
    assert words[:2] == ["hfgen", "serve"] and option_of(words, "--port") == last("EXPOSE") == str(ServeOptions.port)
    assert option_of(words, "--host") == "0.0.0.0"


def test_the_image_runs_as_nobody_in_particular_and_writes_to_tmp_alone():
    names = [name for name, _ in instructions()]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last("USER"))  # numbers: runAsNonRoot can't judge names
    stage = len(names) - names[::-1].index("FROM")
    assert names.index("USER", stage) > names.index("RUN", stage) and "RUN" not in names[names.index("USER", stage) :]
    assert last("USER").split(":")[0] in " ".join(text for name, text in instructions() if name == "RUN")
    variables = dict(word.split("=", 1) for word in shlex.split(last("ENV")))
    for name in ("HOME", "HF_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        assert variables[name] == "/tmp" or variables[name].startswith("/tmp/")
    assert not any("KEY" in name or "TOKEN" in name for name in variables)
    assert "ADD" not in names and last("STOPSIGNAL") == "SIGTERM"


def test_the_context_of_the_image_has_what_it_copies_and_no_more():
    kept = [line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")]
    assert all((ROOT / name).exists() for name in kept)
    copied = [text.split()[0] for name, text in instructions() if name == "COPY" and "--from" not in text]
    assert set(copied) <= {".", *kept}
    manifest = (ROOT / "MANIFEST.in").read_text() + (ROOT / "pyproject.toml").read_text()
    for name in ("LICENSE", "NOTICE", "README.md"):
        assert name in manifest and name in kept
    assert not {"tests", "outputs", ".git"} & set(kept)


def test_the_health_check_tells_a_server_from_none(monkeypatch):
    fastapi = pytest.importorskip("fastapi")
    pytest.importorskip("prometheus_client")
    pytest.importorskip("uvicorn")
    from tests.web.test_service import Running, likelihood

    assert fastapi
    text = last("HEALTHCHECK")
    command = json.loads(text[text.index("CMD") + 3 :])
    assert command[:2] == ["python", "-c"] and f"127.0.0.1:{last('EXPOSE')}/healthz" in command[2]

    def status(port):
        code = command[2].replace(f":{last('EXPOSE')}/", f":{port}/")
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        return subprocess.run([sys.executable, "-S", "-c", code], env=environment, capture_output=True).returncode

    with Running({"vae": likelihood()}) as server:
        port = server.port
        assert status(port) == 0
    assert status(port) != 0


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs Linux and root, to mount")
def test_the_server_starts_where_only_tmp_can_be_written(tmp_path):
    """As in the container: a read-only file system, with an empty folder in the place of /tmp."""
    from tests.saving import test_portable as portable

    portable.denoising()["DiTModel-straight"].save_pretrained(tmp_path / "model")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    setup = f"mount --make-rprivate / && mount -t tmpfs tmpfs {scratch} && mount -o remount,ro,bind / && "
    setup += f"! touch {tmp_path}/here 2>/dev/null && touch {scratch}/here"
    if subprocess.run(["unshare", "-m", "sh", "-c", setup], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    variables = [word.replace("=/tmp", f"={scratch}") for word in shlex.split(last("ENV"))]
    variables += [f"TMPDIR={scratch}", f"PYTHONPATH={os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}"]
    serve = f"{sys.executable} -m hfgen.cli serve model={tmp_path}/model --port 0 --device cpu"
    command = ["unshare", "-m", "sh", "-c", f"{setup} && cd {ROOT} && exec env {shlex.join(variables)} {serve}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert any(line.startswith("Serving at ") for line in process.stdout)
    finally:
        process.terminate()
        process.communicate(timeout=60)


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def patched(document, operations):
    """Return a document after operations of a JSON patch (RFC 6902), `add` and `replace`."""
    document = copy.deepcopy(document)
    for each in operations:
        *way, name = [part.replace("~1", "/").replace("~0", "~") for part in each["path"].split("/")[1:]]
        place = document
        for part in way:
            place = place[int(part) if isinstance(place, list) else part]
        if isinstance(place, list):
            assert each["op"] == "add" and name == "-"
            place.append(each["value"])
        else:
            assert each["op"] == "add" or name in place, each
            place[name] = each["value"]
    return document


def manifests(folder):
    """Return kind -> manifest of a kustomization."""
    kustomization = read(folder / "kustomization.yaml")
    found = {}
    for name in kustomization["resources"]:
        path = (folder / name).resolve()
        found |= manifests(path) if path.is_dir() else {read(path)["kind"]: read(path)}
    for patch in kustomization.get("patches", []):
        kind = patch["target"]["kind"]
        assert found[kind]["metadata"]["name"] == patch["target"]["name"]
        found[kind] = patched(found[kind], read(folder / patch["path"]))
    return found


@pytest.fixture(params=[BASE, GPU], ids=["base", "gpu"])
def cluster(request):
    return manifests(request.param)


def container_of(cluster):
    (container,) = cluster["Deployment"]["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("version", VERSIONS)
def test_the_manifests_are_those_of_the_published_schemas(cluster, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    assert set(cluster) == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    for manifest in cluster.values():
        kubernetes_validate.validate(manifest, version, strict=True)
    wrong = copy.deepcopy(cluster["Deployment"])
    wrong["spec"]["template"]["spec"]["containers"][0]["ports"][0]["containerPort"] = "http"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


RAY = FOLDER / "ray" / "rayservice.yaml"


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pods_of_ray_are_those_of_the_published_schemas(version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    cluster = read(RAY)["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, **group["template"]}
        kubernetes_validate.validate(pod, version, strict=True)
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_service_of_ray_fits_the_server():
    """Its words are those of `hfgen serve`, a replica fits a worker, and each end leaves time for the one inside it."""
    service = read(RAY)
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    args, words = application["args"], ["hfgen", "serve", *shlex.split(application["args"]["words"])]
    assert_parses(words)
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    (container,) = pod["containers"]
    variables = {each["name"]: each for each in container["env"]}
    assert args["cpus"] == int(container["resources"]["limits"]["cpu"]) == int(variables["OMP_NUM_THREADS"]["value"])
    assert (args["replicas"], args["most"]) == (workers["minReplicas"], workers["maxReplicas"])
    assert args["ongoing"] >= 2 * int(option_of(words, "--max_batch"))
    assert pod["terminationGracePeriodSeconds"] > args["grace"] > float(option_of(words, "--timeout"))
    assert words[2].startswith("model=" + container["volumeMounts"][0]["mountPath"]) and API_KEY in variables


def test_every_file_belongs_to_a_kustomization():
    for folder in (BASE, GPU):
        names = yaml.safe_dump(read(folder / "kustomization.yaml"))
        assert all(path.name in names for path in folder.glob("*.yaml") if path.name != "kustomization.yaml")


def test_selectors_find_the_pods_and_ports_the_server(cluster):
    labels = cluster["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert cluster["Deployment"]["spec"]["selector"]["matchLabels"] == labels == cluster["Service"]["spec"]["selector"]
    assert cluster["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    reference = cluster["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (reference["kind"], reference["name"]) == ("Deployment", cluster["Deployment"]["metadata"]["name"])
    container = container_of(cluster)
    (port,) = container["ports"]
    words = ["hfgen", "serve", *container["args"]]
    assert_parses(words)
    assert option_of(words, "--port") == str(port["containerPort"]) == last("EXPOSE")
    assert cluster["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    annotations = cluster["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port["containerPort"])


def test_probes_ask_what_the_server_answers_without_a_key(cluster):
    pytest.importorskip("fastapi")
    from hfgen.web.gate import OPEN

    container = container_of(cluster)
    paths = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/healthz"}
    metrics = cluster["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"]
    assert {*paths.values(), metrics} == set(OPEN)
    assert all(container[f"{kind}Probe"]["httpGet"]["port"] == "http" for kind in paths)
    assert [entry["name"] for entry in container["env"] if "valueFrom" in entry] == [API_KEY]


def test_an_end_loses_nothing(cluster):
    pod, words = cluster["Deployment"]["spec"]["template"]["spec"], container_of(cluster)["args"]
    drain, timeout = (float(option_of(words, name)) for name in ("--drain_seconds", "--timeout"))
    assert pod["terminationGracePeriodSeconds"] > drain + timeout
    probe = container_of(cluster)["readinessProbe"]
    assert drain > probe["periodSeconds"] * probe["failureThreshold"]  # the Service notices before the server is gone
    assert cluster["PodDisruptionBudget"]["spec"]["minAvailable"] < cluster["Deployment"]["spec"]["replicas"]
    assert cluster["HorizontalPodAutoscaler"]["spec"]["minReplicas"] == cluster["Deployment"]["spec"]["replicas"]


def test_pods_may_do_little(cluster):
    pod, container = cluster["Deployment"]["spec"]["template"]["spec"], container_of(cluster)
    assert pod["securityContext"]["runAsNonRoot"] and str(pod["securityContext"]["runAsUser"]) in last("USER")
    assert pod["automountServiceAccountToken"] is False
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    assert security["capabilities"]["drop"] == ["ALL"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert mounts["/models"]["readOnly"] and "emptyDir" in volumes[mounts["/tmp"]["name"]]
    for kind in ("requests", "limits"):
        assert {"cpu", "memory"} <= set(container["resources"][kind])


def test_the_overlay_for_gpus_asks_for_one_and_scales_by_the_queue():
    base, cluster = manifests(BASE), manifests(GPU)
    container = container_of(cluster)
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert option_of(container["args"], "--device") == "cuda"
    (metric,) = cluster["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in exported() and base["Deployment"] != cluster["Deployment"]
    assert "nvidia.com/gpu" not in container_of(base)["resources"]["limits"]


# --- monitoring -------------------------------------------------------------------------------------------------------


def exported():
    """Return name -> labels of the series that a server exports, those of a GPU among them."""
    pytest.importorskip("prometheus_client")
    from unittest import mock

    import torch

    from hfgen.serving.cache import ByteCache
    from hfgen.serving.engine import BatchEngine
    from hfgen.web.metrics import Metrics

    metrics = Metrics([])
    with BatchEngine() as engine, mock.patch.object(torch.cuda, "is_available", lambda: True):
        metrics.follow(engine, ByteCache(0))
    found = {}
    for collector, names in metrics.registry._collector_to_names.items():
        for name in names:
            found[name] = {*collector._labelnames, *({"le"} if name.endswith("_bucket") else ())}
    found["hfgen_model_info"] |= {"revision", "pipeline"}
    return found


def expressions():
    """Return the expressions of the dashboard and of the alerts."""
    alerts = [
        rule["expr"] for group in read(FOLDER / "monitoring" / "alerts.yaml")["groups"] for rule in group["rules"]
    ]
    return [*alerts, *(target["expr"] for panel in dashboard()["panels"] for target in panel["targets"])]


def dashboard():
    return json.loads((FOLDER / "monitoring" / "grafana.json").read_text(encoding="utf-8"))


SERIES = re.compile(r"(hfgen_\w+)(?:\{([^}]*)\})?")


@pytest.mark.parametrize("expression", expressions())
def test_every_metric_and_label_of_an_expression_is_one_that_the_server_exports(expression):
    known = exported()
    names = SERIES.findall(expression)
    assert names or expression.startswith("up{")
    for name, selectors in names:
        assert name in known, f"{name} is not exported"
        assert set(re.findall(r"(\w+)=~?", selectors)) <= known[name], (name, selectors)
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", expression) for label in labels.split(", ")}
    assert grouped <= {"instance", *(label for name, _ in names for label in known[name])}
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")
    if "histogram_quantile" in expression:
        assert all(name.endswith("_bucket") for name, _ in names) and "le" in grouped


def test_values_of_labels_in_expressions_are_ones_that_the_server_sets():
    pytest.importorskip("fastapi")
    from hfgen.web.problems import KINDS

    text = "\n".join(expressions())
    assert set(re.findall(r'kind="(\w+)"', text)) <= set(KINDS.values())
    assert set(re.findall(r'result="(\w+)"', text)) <= {"hit", "miss"}
    assert set(re.findall(r'outcome="(\w+)"', text)) <= {"refused", "flagged"}


def test_the_dashboard_shows_every_metric_of_the_page_without_overlaps():
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8").split("## Metrics")[1].split("\n## ")[0]
    documented = set(re.findall(r"hfgen_\w+", page))
    shown = {name for text in expressions() for name, _ in SERIES.findall(text)}
    ends = re.compile(r"_(bucket|sum|count)$")
    assert documented == {ends.sub("", name) for name in shown}
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [(x, y) for panel in panels for x in range(panel["gridPos"]["x"], sum(panel["gridPos"][k] for k in "xw"))
             for y in range(panel["gridPos"]["y"], sum(panel["gridPos"][k] for k in "yh"))]  # fmt: skip
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]}
    used = set(re.findall(r"\$(?!__)\{?(\w+)", json.dumps(panels)))
    assert used == variables


def test_alerts_have_what_prometheus_and_people_need():
    names = []
    for group in read(FOLDER / "monitoring" / "alerts.yaml")["groups"]:
        for rule in group["rules"]:
            assert {"alert", "expr", "for", "labels", "annotations"} == set(rule)
            assert re.fullmatch(r"\d+[smh]", rule["for"]) and rule["annotations"]["summary"]
            assert rule["labels"]["severity"] in ("critical", "warning", "info")
            names.append(rule["alert"])
    assert len(names) == len(set(names)) > 4
    config = read(FOLDER / "monitoring" / "prometheus.yaml")
    assert config["rule_files"] == ["alerts.yaml"]
    (scrape,) = config["scrape_configs"]
    assert scrape["static_configs"][0]["targets"] == [f"127.0.0.1:{ServeOptions.port}"]
    assert scrape["job_name"] in "\n".join(expressions())
