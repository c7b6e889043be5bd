"""What is left out of everything that trainkit says."""

import json

import pytest

from trainkit.config import set_environ
from trainkit.redaction import redacted, without_secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            'Could not connect to the endpoint URL: "http://me:pass/word@host:80/a?b=c"',
            'Could not connect to the endpoint URL: "http://…@host:80/a?b=c"',
        ),
        (
            "403, url='https://x.blob.core.windows.net/c/run?sv=2026&sig=abc%2F&se=1'",
            "403, url='https://x.blob.core.windows.net/c/run?sv=2026&sig=…&se=1'",
        ),
        (
            "GET https://h/x?X-Amz-Credential=AKID&X-Amz-Signature=abc&X-Amz-Security-Token=def",
            "GET https://h/x?X-Amz-Credential=…&X-Amz-Signature=…&X-Amz-Security-Token=…",
        ),
        ("https://h/x?access_token=abc", "https://h/x?access_token=…"),
        (
            f"s3://key:{'x' * 3000}/y@h/x?sig=abc http://h/a://b",
            "s3://…@h/x?sig=… http://h/a://b",
        ),
        ("rdzv-conf timeout=9,password=abc", "rdzv-conf timeout=9,password=…"),
        ("train.py --hub-token abc --api-key=d-f", "train.py --hub-token … --api-key=…"),
        ("['t.py', '--password', 'abc', 'x']", "['t.py', '--password', '…', 'x']"),
        ("t.py --token --tokenizer gpt2 --keys 3", "t.py --token --tokenizer gpt2 --keys 3"),
        ("sorted(words, key=len), max_tokens=5", "sorted(words, key=len), max_tokens=5"),
        ("no such bucket: s3://bucket/run", "no such bucket: s3://bucket/run"),
        ("mail to a@b, design=x, a signature", "mail to a@b, design=x, a signature"),
    ],
)
def test_credentials_in_a_url(text, shown):
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password", "WANDB_API_KEY", "MY_CREDENTIALS"]
)
def test_the_value_of_a_secret_variable(name):
    shown = redacted("login with pa55-w0rd! failed: 'pa55-w0rd!x'", {name: "pa55-w0rd!"})
    assert shown == "login with … failed: '…x'"
    assert redacted("login with pa55-w0rd!", {"HOME": "pa55-w0rd!"}) == "login with pa55-w0rd!"


def test_it_is_this_process_whose_environment_counts():
    set_environ({"TRAINKIT_TEST_TOKEN": "planted-secret"})
    try:
        assert redacted("a planted-secret here") == "a … here"
    finally:
        set_environ({"TRAINKIT_TEST_TOKEN": None})


@pytest.mark.parametrize("write", [repr, json.dumps, str])
def test_a_secret_that_is_escaped_or_of_several_lines(write):
    key = '-----BEGIN KEY-----\nMIIEvQ"IBADANBg\\kqhki\n-----END KEY-----'
    shown = redacted(f"cannot use {write(key)}, line 2 is 'MIIEvQ\"IBADANBg\\kqhki'", {"KEY": key})
    assert "MIIEvQ" not in shown
    assert "IBADANBg" not in shown
    assert shown.startswith("cannot use ")


def test_a_secret_in_a_url_is_quoted():
    shown = redacted("GET /x?k=a%2Fb%20c%3Fd-e", {"API_KEY": "a/b c?d-e"})
    assert shown == "GET /x?k=…"


def test_one_secret_in_another():
    assert (
        redacted("long-secret-value", {"A_KEY": "long-secret", "B_KEY": "long-secret-value"}) == "…"
    )


def test_a_short_secret_is_hidden_as_a_word_alone():
    assert redacted("pin: abc1, xabc1x", {"PIN_KEY": "abc1"}) == "pin: …, xabc1x"


@pytest.mark.parametrize("value", ["false", "1", "", "on", "30", "  "])
def test_what_is_no_secret_though_its_name_looks_like_one(value):
    text = f"requires_grad is {value} in step 30 of 1"
    assert redacted(text, {"TOKENIZERS_PARALLELISM": value}) == text
