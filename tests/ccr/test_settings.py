import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from ccr.errors import ConfigError
from ccr.settings import SECRETS, Settings, keys_by_section, load, parse, seconds
from ccr.shapes import LLAMA_3_8B, MISTRAL_7B
from ccr.timing import weights_gib

HASH = "sha256:" + "0" * 64
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Sets variables; none of ours is there to begin with."""
    import os

    for name in list(os.environ):
        if name.upper().startswith("CCR_"):
            monkeypatch.delenv(name)
    return lambda **variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def read(text):
    return parse(text.encode(), "config.yaml")


def problems(text):
    """The lines of the report, without the first."""
    with pytest.raises(ConfigError) as refused:
        read(text)
    return [line.strip() for line in str(refused.value).splitlines()[1:]]


# -- durations


@given(
    st.floats(0.0, 1e6).map(lambda x: round(x, 3)), st.sampled_from([*UNITS_S]), st.sampled_from(["", " "])
)
def test_a_duration_is_a_number_with_its_unit(number, unit, space):
    assert seconds(f"{number:f}{space}{unit}") == pytest.approx(number * UNITS_S[unit])


@given(st.floats(0.0, 1e9))
def test_a_duration_without_a_unit_is_seconds(number):
    assert seconds(number) == seconds(str(number)) == number


@pytest.mark.parametrize("text", ["", "s", "30 sec", "1h30m", "-5s", "1.2.3s", "1,5s", "0x10", "forever"])
def test_what_is_no_duration_is_refused_with_examples(text):
    with pytest.raises(ValueError, match=r"write 30s, 500ms, 2m, 1h"):
        seconds(text)


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "off", "true", "[1]"])
def test_a_duration_in_the_file_is_finite_and_not_negative(value):
    (problem,) = problems(f"server: {{body_timeout: {value}}}")

    assert problem.startswith("server.body_timeout: ")


# -- files


def test_an_empty_file_is_the_defaults():
    assert read("") == read("# only a comment\n") == Settings()


def test_durations_stand_under_keys_without_their_unit():
    settings = read("upstream: {idle_timeout: 2m, ttft_timeout: 500ms}")

    assert (settings.upstream.idle_timeout_s, settings.upstream.ttft_timeout_s) == (120.0, 0.5)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("server: {port: 1234}")

    assert load(path).server.port == 1234
    assert load(None).server.port == 8090


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no config file .*nope\.yaml"):
        load(tmp_path / "nope.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("a: *nowhere", "undefined alias 'nowhere'"),
        ("a: &x 1\na: 2", "key 'a' is given twice"),
        ("server: {port: 1, port: 2}", "key 'port' is given twice"),
        ("nodes: [{url: a, url: b}]", "key 'url' is given twice"),
        ("? [a]\n: 1", "unhashable"),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("!!map [a]", "expected a mapping"),
        ("a: " + "[" * 1500, "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("- a", "found a list"),
        ("just text", "found a str"),
        ("1: 2", "setting names must be text"),
    ],
)
def test_what_is_no_config_is_refused_with_its_origin(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        read(text)

    assert str(refused.value).startswith("config.yaml")


@given(st.text(max_size=60))
def test_no_text_does_anything_but_pass_or_be_refused(text):
    try:
        read(text)
    except ConfigError as error:
        said = str(error)
    else:
        said = "config.yaml is good"

    assert "config.yaml" in said


# -- errors


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("serber: {}", "serber"),
        ("server: {prot: 1}", "server.prot"),
        ("nodes: [{url: 'http://a:1', weight: 2}]", "nodes.0.weight"),
        ("models: {llama: {version: {}}}", "models.llama.version"),
        ("models: {llama: {versions: {'1': {wieght: 1}}}}", "models.llama.versions.1.wieght"),
        ("discovery: {dns: [{name: a, host: b, port: 1, ttl: 1}]}", "discovery.dns.0.ttl"),
    ],
)
def test_an_unknown_key_is_refused_where_it_stands(text, place):
    assert problems(text) == [f"{place}: no such setting; see docs/configuration.md, or remove it"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server: {port: 70000}", r"server\.port: .*less than or equal to 65535 \(given: 70000\)"),
        ("server: {port: http}", r"server\.port: .*valid integer.* \(given: 'http'\)"),
        ("server: {max_headers: 0}", r"server\.max_headers: .*greater than 0"),
        ("policy: {name: best}", r"policy: no policy is called 'best'; there are random, .*script"),
        ("policy: {name: script}", r"policy: policy 'script' needs `script: PATH`"),
        ("policy: {fallback: script}", r"policy: no built-in policy is called 'script'"),
        ("policy: {exploration: 2}", r"policy\.exploration: .*less than or equal to 1"),
        ("guard: {factor: 0.5}", r"guard\.factor: .*greater than or equal to 1"),
        ("nodes: [{id: a}]", r"nodes\.0\.url: Field required$"),
        ("upstream: {retries: 4}", r"upstream\.retries: "),
        ("batching: {max_wait: 1s}", r"batching\.max_wait: .*0\.1"),
        ("log: {format: xml}", r"log\.format: .*'json' or 'console'"),
        ("sidecar: {lease: 0}", r"sidecar\.lease: .*greater than 0"),
        ("models: {a: {aliases: {prod: '3'}}}", r"models\.a: alias 'prod' points to '3'; versions are none"),
        ("models: {a: {versions: {'1': {weight: 0}}}}", r"models\.a: every version has weight 0"),
        (
            "models: {a: {architecture: {like: gpt}}}",
            r"architecture: no architecture is called 'gpt'; .*mistral-7b",
        ),
        (
            "models: {a: {architecture: {layers: 3}}}",
            r"architecture: parameters, .*hidden.* is missing; .*`like`",
        ),
        (
            "models: {a: {architecture: {like: mistral-7b, weight_bytes: 4}}}",
            r"weight_bytes: .*1 or 2 \(given: 4\)",
        ),
        ("models: {a: {versions: {'1': {weight_bytes: 1}}}}", r"models\.a: `weight_bytes` .* give that too"),
        ("models: {a: {lora_of: b}}", r"models\.a: `lora_of` is 'b', .*add it, `b: {}` is enough"),
        ("models: {a: {lora_of: a}}", r"models\.a: .* is an adapter itself"),
        (
            "models: {a: {lora_of: b}, b: {versions: {'1': {}, '2': {}}}}",
            r"known as b@1, b@2: write one of these",
        ),
        (
            "models: {a: {lora_of: b@3}, b: {versions: {'1': {}, '2': {}}}}",
            r"known as b@1, b@2: write one of these",
        ),
        ("models: {a: {lora_of: b@3}, b: {}}", r"known as b: write one of these"),
        (
            "models: {a: {lora_of: b, architecture: {like: mistral-7b}}, b: {}}",
            r"models\.a: an adapter has the architecture of its `lora_of`: remove `architecture`",
        ),
        ("server: {replicas: 0}", r"server\.replicas: .*greater than or equal to 1"),
        ("nodes: [{url: u, id: a}, {url: v, id: a}]", r"\(top level\): nodes: a is given more than once"),
        (
            f"keys: [{{name: a, hash: '{HASH}'}}, {{name: b, hash: '{HASH}'}}]",
            "keys: .* given more than once",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_place_value_and_remedy(text, problem):
    (found,) = problems(text)

    assert re.search(problem, found)


def test_every_problem_is_in_one_report():
    found = problems("server: {port: x, prot: 1}\nguard: {factor: 0}\nsidecar: {lease: soon}\nnope: 1")

    assert [line.partition(":")[0] for line in found] == [
        "server.port", "server.prot", "guard.factor", "sidecar.lease", "nope",
    ]  # fmt: skip


def test_an_alias_may_be_used_for_a_version_that_exists():
    models = read("models: {a: {versions: {'3': {}}, aliases: {prod: '3'}}}").catalogue().models

    assert models["a"].aliases == {"prod": "3"}


# -- environment


def test_the_environment_wins_over_the_file_and_leaves_the_rest(environment):
    environment(CCR_SERVER__PORT="1", ccr_upstream__idle_timeout="2m")

    settings = read("server: {port: 2, max_headers: 3}\nupstream: {retries: 0}")

    assert (settings.server.port, settings.server.max_headers) == (1, 3)
    assert (settings.upstream.idle_timeout_s, settings.upstream.retries) == (120.0, 0)


def test_lists_come_as_json(environment):
    environment(CCR_NODES='[{"url": "http://a:1"}, {"url": "http://b:1"}]')

    assert [node.url for node in read("").nodes] == ["http://a:1", "http://b:1"]


def test_a_wrong_variable_is_named(environment):
    environment(CCR_SERVER__PORT="http", CCR_SERVER__PROT="1")

    assert problems("")[0].startswith("server.port (from CCR_SERVER__PORT): ")
    assert problems("")[1].startswith("server.prot (from CCR_SERVER__PROT): no such setting")


def test_a_variable_for_an_unknown_section_is_refused(environment):
    environment(CCR_SEVER__PORT="1")

    assert problems("") == ["CCR_SEVER__PORT: no such setting; see docs/configuration.md, or unset it"]


def test_variables_that_are_no_settings_are_left_alone(environment):
    """Kubernetes sets the last two for a service called ccr."""
    environment(CCR_ADMIN_URL="http://a:1", CCR_SERVICE_HOST="10.0.0.1", CCR_PORT="tcp://10.0.0.1:80")

    assert read("") == Settings()


def test_a_variable_that_is_not_json_where_it_must_be_is_refused(environment):
    environment(CCR_NODES="http://a:1")

    with pytest.raises(ConfigError, match=r"nodes.*write it as JSON"):
        read("")


# -- secrets


def test_secrets_are_masked_wherever_settings_are_written():
    settings = read(
        "admin: {token: hunter2}\nsidecar: {secret: hunter2}\nnodes: [{url: 'http://a:1', api_key: hunter2}]"
    )

    for text in (repr(settings), str(settings), settings.model_dump_json(by_alias=True)):
        assert "hunter2" not in text


@pytest.mark.parametrize(
    "text",
    [
        "keys: [{name: a, hash: ccr-hunter2}]",
        "admin: {token: [hunter2]}",
        "admin: {token: hunter2}\nnodes: [{url: a}, {url: a}]",
        "nodes: [{url: 'http://a:1', api_key: {hunter2: 1}}]",
        "sidecar: {secret: [hunter2]}",
    ],
)
def test_a_report_repeats_no_secret(text):
    assert "hunter2" not in "".join(problems(text))


def test_every_secret_setting_is_known_to_the_reports():
    secret = {
        key.rpartition(".")[2]
        for key, info in keys_by_section().items()
        if SecretStr in (info.annotation, *get_args(info.annotation))
    }

    assert secret <= SECRETS


# -- what becomes of them


def test_a_script_makes_its_policy_the_default():
    assert read("policy: {script: p.py}").policy.name == "script"
    assert read("policy: {script: p.py, name: random}").policy.name == "random"


def test_sizes_and_load_times_are_filled_in():
    models = read("models: {a: {gib: 14, versions: {'1': {}, '2': {gib: 7, load: 3s, id: a-two}}}, b: {}}")
    versions = models.catalogue().models["a"].versions

    assert (versions["1"].id, versions["1"].gib, versions["1"].load_s) == ("a@1", 14.0, 10.0)
    assert (versions["2"].id, versions["2"].gib, versions["2"].load_s) == ("a-two", 7.0, 3.0)
    assert models.catalogue().models["b"].versions[""].id == "b"


def test_an_architecture_is_a_public_model_s_with_what_differs():
    text = "models: {a: {architecture: {like: llama-3-8b, tied: true}, versions: {'1': {}, '2': {weight_bytes: 1}}}}"
    models = read(text).prices().models

    assert models["a@1"] == replace(LLAMA_3_8B, architecture="a", tied=True)
    assert models["a@2"] == replace(LLAMA_3_8B, architecture="a", tied=True, weight_bytes=1)


def test_an_architecture_may_be_written_out():
    text = """
    models:
      a:
        architecture:
          {parameters: 7_241_732_096, embedding_parameters: 131_072_000, layers: 32, hidden: 4096,
           kv_bytes_per_token: 131_072}
    """

    assert read(text).prices().models["a"] == replace(MISTRAL_7B, architecture="a")


def test_a_size_that_is_not_given_is_the_architecture_s():
    settings = read(
        "models: {a: {architecture: {like: llama-3-8b}}, b: {gib: 4, architecture: {like: llama-3-8b}}}"
    )
    versions = {name: entry.versions[""] for name, entry in settings.catalogue().models.items()}

    assert versions["a"].gib == pytest.approx(weights_gib(LLAMA_3_8B))
    assert versions["b"].gib == 4.0
    assert settings.prices().stated["a"].load_s == versions["a"].load_s


def test_a_model_without_architecture_has_its_stated_size():
    prices = read("models: {a: {gib: 5}}").prices()

    assert (prices.models, prices.stated["a"].gib) == ({}, 5.0)


@pytest.mark.parametrize(
    ("lora_of", "versions", "base"),
    [
        pytest.param("b", "{}", "b", id="no versions"),
        pytest.param("b", "{'1': {}}", "b@1", id="the only one"),
        pytest.param("b@2", "{'1': {}, '2': {id: bee}}", "bee", id="by version"),
        pytest.param("b@prod", "{'1': {}, '2': {}}", "b@1", id="by alias"),
    ],
)
def test_an_adapter_is_priced_on_its_base(lora_of, versions, base):
    aliases = "{prod: '1'}" if lora_of.endswith("prod") else "{}"
    settings = read(
        f"models: {{a: {{lora_of: '{lora_of}', gib: 0.5, versions: {{x: {{}}}}}}, "
        f"b: {{architecture: {{like: mistral-7b}}, versions: {versions}, aliases: {aliases}}}}}"
    )

    adapter = settings.prices().models["a@x"]

    assert adapter == replace(MISTRAL_7B, architecture="b", base=base, adapter_bytes=2**29)
    assert settings.catalogue().models["a"].versions["x"].gib == 0.5


def test_the_base_of_an_adapter_needs_no_architecture():
    prices = read("models: {a: {lora_of: b}, b: {gib: 6}}").prices()

    assert prices.base("a") == "b"
    assert weights_gib(prices.models["a"]) == pytest.approx(6.0)


def test_the_rules_of_the_fleet_and_the_guard_are_those_of_the_settings():
    settings = read(
        "telemetry: {stale_after: 7s}\noutlier: {failures: 9, cap: 1m}\nguard: {factor: 3, min_inflight: 2}"
    )
    rules, guard = settings.fleet_rules(), settings.bounded_load()

    assert (rules.stale_after_s, rules.outlier.failures, rules.outlier.cap_s) == (7.0, 9, 60.0)
    assert (guard.factor, guard.min_inflight) == (3.0, 2)


def test_the_token_file_names_the_port_the_listener_took():
    admin = read("admin: {port: 0}").admin

    assert admin.where_token_is(4711).name == "admin-4711.token"
    assert read("admin: {token_file: /run/t}").admin.where_token_is(4711) == Path("/run/t")


def test_settings_survive_being_written_and_read():
    """``ccr config show`` gives a config; secrets aside."""
    settings = read(
        "server: {drain: 2m}\nmodels: {a: {versions: {'1': {}}}}\nnodes: [{url: 'http://a:1', tags: [x]}]"
    )

    assert read(yaml.safe_dump(settings.model_dump(mode="json", by_alias=True))) == settings
    assert read(json.dumps(settings.model_dump(mode="json", by_alias=True))) == settings


def test_the_keys_of_every_section_are_listed():
    keys = keys_by_section()

    assert {
        "server.port", "upstream.idle_timeout", "nodes", "nodes[].url", "discovery.dns[].interval", "models",
        "models.NAME.versions.NAME.weight", "keys[].hash",
    } <= set(keys)  # fmt: skip
    assert not any(key.endswith("_s") for key in keys)


@pytest.mark.parametrize("max_bytes", [3 * 2**20, 501 * 2**20])
def test_a_recording_holds_4_to_500_segments(max_bytes):
    text = f"record: {{segment_bytes: {2**20}, max_bytes: {max_bytes}}}"

    with pytest.raises(ConfigError, match="max_bytes must hold 4 to 500 segments"):
        parse(text.encode(), "c")
