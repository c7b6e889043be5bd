"""Where obstore takes an environment exactly as boto would, and where it may not be asked."""

import pytest

from trainkit.storage.aws import client_options, is_plain, is_plain_key

KEYS = {"AWS_ACCESS_KEY_ID": "planted-id", "AWS_SECRET_ACCESS_KEY": "planted-secret"}


@pytest.fixture
def home(tmp_path):
    return {"HOME": str(tmp_path)}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"AWS_SESSION_TOKEN": "planted-token", "AWS_REGION": "eu-west-1"},
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:8333"},
        {"AWS_ENDPOINT_URL": "http://a:1", "AWS_CA_BUNDLE": "/ca.pem", "SSL_CERT_FILE": "/ca.pem"},
        {"AWS_ENDPOINT_URL_S3": "https://minio.storage.svc.cluster.local/"},
        {"AWS_EC2_METADATA_DISABLED": "true", "NO_PROXY": "localhost", "OTHER": "AWS_PROFILE"},
    ],
)
def test_keys_and_endpoint_alone_are_plain(home, more):
    for url in ("s3://bucket/run", "s3a://my.bucket-1/a/b=c/d_e.f", "s3://bucket"):
        assert is_plain(url, {**home, **KEYS, **more})


@pytest.mark.parametrize(
    "more",
    [
        {"AWS_PROFILE": "team"},
        {"AWS_CONFIG_FILE": "/etc/aws"},
        {"AWS_SHARED_CREDENTIALS_FILE": "/etc/aws"},
        {"AWS_ROLE_ARN": "arn:aws:iam::1:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE": "/token"},
        {"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/x"},
        {"AWS_CA_BUNDLE": "/etc/ca.pem"},
        {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
        {"AWS_USE_FIPS_ENDPOINT": "true"},
        {"AWS_SOMETHING_THAT_COMES_LATER": "1"},
        {"AWS_SKIP_SIGNATURE": "true"},
        {"SSL_CERT_FILE": "/etc/ca.pem"},
        {"REQUESTS_CA_BUNDLE": "/etc/ca.pem", "AWS_ENDPOINT_URL": "https://host"},
        {"https_proxy": "http://proxy:3128"},
        {"ALL_PROXY": "http://proxy:3128"},
        {"FSSPEC_S3_ANON": "true"},
        {"AWS_ENDPOINT_URL": "http://me:word@host:80"},
        {"AWS_ENDPOINT_URL": "http://host/path"},
        {"AWS_ENDPOINT_URL": "host:8333"},
        {"AWS_SECRET_ACCESS_KEY": ""},
    ],
)
def test_whatever_else_may_matter_is_left_to_boto(home, more):
    assert not is_plain("s3://bucket/run", {**home, **KEYS, **more})


def test_without_keys_boto_looks_for_them(home):
    assert not is_plain("s3://bucket/run", home)
    assert not is_plain("s3://bucket/run", {**home, "AWS_ACCESS_KEY_ID": "planted-id"})


@pytest.mark.parametrize("file", [".aws/config", ".aws/credentials", ".config/fsspec/conf.json"])
def test_files_of_configuration_are_left_to_boto_and_fsspec(home, tmp_path, file):
    assert is_plain("s3://bucket/run", {**home, **KEYS})
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).touch()
    assert not is_plain("s3://bucket/run", {**home, **KEYS})


@pytest.mark.parametrize(
    "url",
    [
        "gs://bucket/run",
        "az://bucket/run",
        "memory://bucket/run",
        "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/mine/run",
        "s3://Bucket/run",
        "s3://bucket//run",
        "s3://bucket/with space",
        "s3://bucket/a#b",
        "s3://bucket/100%",
        "s3://bucket/läufe",
    ],
)
def test_other_stores_and_names_with_two_spellings_are_left_to_fsspec(home, url):
    assert not is_plain(url, {**home, **KEYS})


def test_plain_keys():
    assert is_plain_key("step-0000000002.g1/model/model-00001-of-00004.safetensors")
    assert is_plain_key("a/b=c@d,e+f_g.h")
    for key in ("a b", "a~b", "a%20b", "a\nb", "a[0]", "ä"):
        assert not is_plain_key(key)


def test_options():
    found = client_options("bucket", {**KEYS, "AWS_SESSION_TOKEN": "t", "AWS_REGION": "eu-west-1"})
    assert found["session_token"] == "t"
    assert found["region"] == "eu-west-1"
    assert found["virtual_hosted_style_request"]
    assert not found["client_options"]["allow_http"]
    assert "endpoint" not in found
    assert not client_options("my.bucket", KEYS)["virtual_hosted_style_request"]
    local = {"AWS_ENDPOINT_URL": "https://other", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1/"}
    found = client_options("bucket", {**KEYS, **local})
    assert found["endpoint"] == "http://127.0.0.1:1"
    assert found["client_options"]["allow_http"]
    assert found["region"] == "us-east-1"
    assert not found["virtual_hosted_style_request"]
    secure = client_options("bucket", {**KEYS, "AWS_ENDPOINT_URL": "https://other"})
    assert not secure["client_options"]["allow_http"]
