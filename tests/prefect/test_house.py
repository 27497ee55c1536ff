"""The house holds together: every step has its task, every verb its flow, every deployment its parameters; imports point one way."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FLOORS = ("steelyard", "tasks", "flows", "deployments")


def modules(floor: str) -> list[Path]:
    return sorted((ROOT / floor).rglob("*.py"))


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Names of the modules that *path* imports; *top_only*: when it is loaded, not inside functions or for types only."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if top_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if top_only and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            yield child
            yield from walk(child)

    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def test_imports_point_one_way() -> None:
    """flows → tasks → steelyard; only deployments knows where and when; Prefect is not known below tasks."""
    forbidden = {
        "steelyard": {"prefect", "tasks", "flows", "deployments"},
        "tasks": {"flows", "deployments"},
        "flows": {"deployments"},
        "deployments": {"tasks"},
    }
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for floor in FLOORS
        for path in modules(floor)
        for name in imports(path)
        if name.partition(".")[0] in forbidden[floor]
    ]
    assert found == []


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        (
            "torch",
            {
                "steelyard/checkpoint/load_child.py",
                "steelyard/checkpoint/load_torch.py",
                "steelyard/checkpoint/load_scan.py",
                "steelyard/use.py",
            },
        ),
        ("boto3", {"steelyard/copies/s3*.py", "steelyard/standins/*.py", "flows/demo.py"}),
        (
            "huggingface_hub",
            {
                "steelyard/hub.py",
                "steelyard/hub_client.py",
                "steelyard/hub_errors.py",
                "steelyard/pools.py",
                "steelyard/xet.py",
                "steelyard/doctor/hub.py",
                "flows/demo_acts.py",
            },
        ),
    ],
)
def test_heavy_libraries_are_loaded_only_where_they_are_needed(library: str, allowed: set[str]) -> None:
    found = {
        str(path.relative_to(ROOT))
        for floor in FLOORS
        for path in modules(floor)
        for name in imports(path)
        if name.partition(".")[0] == library
    }
    assert {one for one in found if not any(Path(one).match(pattern) for pattern in allowed)} == set()


@pytest.mark.parametrize("library", ["torch", "boto3", "huggingface_hub", "prefect"])
def test_no_module_of_the_domain_loads_a_heavy_library_when_it_is_imported(library: str) -> None:
    allowed = {"load_child.py", "load_torch.py", "load_scan.py"} if library == "torch" else set[str]()
    found = [
        str(path.relative_to(ROOT))
        for path in modules("steelyard")
        for name in imports(path, top_only=True)
        if name.partition(".")[0] == library and path.name not in allowed and "standins" not in path.parts
    ]
    assert [one for one in found if not Path(one).name.startswith("s3")] == []


@pytest.mark.parametrize("arguments", [["--help"], ["status"], ["verify", "--help"]])
def test_help_and_status_load_neither_torch_nor_prefect(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "steelyard.toml").write_text(
        f'[store]\nmodels = "{tmp_path}/m"\nhf_home = "{tmp_path}/hf"\n[models.a]\nrepo_id = "a/b"\n', encoding="utf-8"
    )
    code = (
        "import sys\nfrom steelyard.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'prefect', 'boto3', 'huggingface_hub') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stderr.splitlines()[-1] == "[]", done.stderr


def steps() -> set[tuple[str, str]]:
    """Every function that some verb passes to `run(…)`, as (module, name)."""
    found = set()
    for path in modules("steelyard"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        home = {
            alias.asname or alias.name: node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "run" and node.args:
                step = node.args[0]
                if isinstance(step, ast.Name) and not isinstance(getattr(step, "ctx", None), ast.Store) and step.id != "step":
                    found.add((home.get(step.id) or f"steelyard.{path.stem}", step.id))
    return found


def test_every_step_has_a_task() -> None:
    from tasks.twins import TWINS

    for path in modules("tasks"):
        importlib.import_module(f"tasks.{path.stem}" if path.stem != "__init__" else "tasks")
    named = {(step.__module__, step.__name__) for step in TWINS}
    assert len(steps()) >= 17
    assert steps() - named == set()


def test_a_task_keeps_nothing_and_is_found_from_its_step_alone() -> None:
    """In a process that has loaded no task yet, wherever the step has been moved to."""
    code = (
        "import sys, steelyard.agree, steelyard.backup\n"
        "from tasks.runner import _load_twins_of\nfrom tasks.twins import TWINS\n"
        "_load_twins_of(steelyard.backup.copy_files)\n"
        "assert steelyard.backup.copy_files in TWINS and 'tasks.download' not in sys.modules\n"
        "_load_twins_of(steelyard.agree.agree_on)\n"
        "twin = TWINS[steelyard.agree.agree_on]\n"
        "assert twin.task.persist_result is False and twin.task.retries == 2 and not twin.task.tags\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_verb_is_a_flow_and_takes_what_the_command_line_gives() -> None:
    from flows.engine import FLOWS, flow_of
    from steelyard.commands import app
    from steelyard.verbs import VERBS, Call

    assert set(VERBS) <= set(FLOWS)
    for verb in VERBS:
        tokens = [verb, "mvdream"] if verb in {"restore", "update", "rollback"} else [verb]
        call = app(tokens, exit_on_error=False, print_error=False)
        assert isinstance(call, Call)
        flow, options = flow_of(call)
        assert flow.name == FLOWS[verb].partition(":")[2].replace("_", "-")  # type: ignore[attr-defined]
        assert options.title
        with pytest.raises(ValueError, match="frozen"):
            options.config = Path("/elsewhere")


# --- prefect.yaml


def declared() -> dict[str, dict[str, Any]]:
    content = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))
    return {f"{one['entrypoint']}/{one['name']}": one for one in content["deployments"]}


def entry(name: str) -> Any:
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(module), function)


def test_every_flow_is_deployed_once() -> None:
    from flows.engine import FLOWS

    assert sorted(one["entrypoint"] for one in declared().values()) == sorted(name.replace(":", ".") for name in FLOWS.values())


@pytest.mark.parametrize("name", sorted(declared()))
def test_a_declared_deployment_imports_and_its_parameters_validate(name: str) -> None:
    from prefect import Flow

    one = declared()[name]
    flow = entry(one["entrypoint"])
    assert isinstance(flow, Flow)
    assert "steelyard" in one["tags"]
    assert one["description"]
    assert one["concurrency_limit"]["collision_strategy"] == "ENQUEUE"
    if "options" in flow.parameters.required and "parameters" not in one:
        assert "schedules" not in one
        return
    flow.validate_parameters(one.get("parameters", {}))


def test_the_schedules_are_those_that_the_readme_tells_of() -> None:
    found = {one["schedules"][0]["slug"]: one["entrypoint"] for one in declared().values() if "schedules" in one}
    assert found == {
        "nightly": "flows.keep_models.keep_models",
        "weekly": "flows.verify.verify_models",
        "daily": "flows.check_updates.check_updates",
        "monthly": "flows.drill.drill_restore",
        "watch": "flows.disk_watch.disk_watch",
        "scrub": "flows.scrub.scrub_models",
    }


def test_every_form_explains_each_of_its_fields() -> None:
    for one in declared().values():
        schema = entry(one["entrypoint"]).parameters.model_dump()
        model = schema["definitions"]
        for form in model.values():
            assert form["description"]
            for field, shape in form["properties"].items():
                assert shape.get("description"), f"{one['entrypoint']}: {field}"


def test_what_replaces_bytes_only_says_so_at_first() -> None:
    from flows.keep_models import KeepModels
    from flows.repair import RepairModels

    assert RepairModels().dry_run is True
    assert KeepModels().repair == "report"


def test_the_form_offers_the_configured_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.restore import RestoreModel
    from flows.verify import VerifyModels

    config = tmp_path / "steelyard.toml"
    config.write_text(
        f'[store]\nmodels = "{tmp_path}/m"\nhf_home = "{tmp_path}/hf"\n[models.one]\nrepo_id = "a/b"\n[models.two]\nrepo_id = "a/c"\n'
        f'[replicas.usb]\nkind = "mount"\npath = "{tmp_path}/usb"\nmount_point = false\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("STEELYARD_CONFIG", str(config))
    shape = VerifyModels.model_json_schema()["properties"]
    assert shape["models"]["items"]["enum"] == ["one", "two"]
    assert shape["copy_name"]["enum"] == ["store", "hub-cache", "usb", "all"]
    assert RestoreModel.model_json_schema()["properties"]["model"]["enum"] == ["one", "two"]
    monkeypatch.setenv("STEELYARD_CONFIG", str(tmp_path / "absent.toml"))
    assert "enum" not in VerifyModels.model_json_schema()["properties"]["models"]["items"]


# --- the rest of deployments/


def test_the_service_starts_the_real_command_and_names_no_machine() -> None:
    text = (ROOT / "deployments" / "steelyard.service").read_text(encoding="utf-8")
    start = re.search(r"^ExecStart=(\S+) (.*)$", text, re.MULTILINE)
    assert start and start[1] == "%h/steelyard/.venv/bin/steelyard"
    assert start[2].startswith("up --config ")
    assert "/home/" not in text and "/root" not in text
