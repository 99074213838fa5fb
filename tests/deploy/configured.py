"""What prometheus-adapter and Grafana read of their own configuration; no package holds it as a schema.

After the fields of pkg/config/config.go (kubernetes-sigs/prometheus-adapter) and of
pkg/services/provisioning/{dashboards,datasources}/types.go (grafana/grafana). Both pass over a field that they do not
know without a word.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Label(Strict):
    resource: str
    group: str = ""


class Resources(Strict):
    template: str = ""
    overrides: dict[str, Label] = {}


class Name(Strict):
    matches: str = ""
    as_: str = Field("", alias="as")


class Rule(Strict):
    series_query: str
    series_filters: list[dict[Literal["is", "isNot"], str]] = []
    resources: Resources
    name: Name
    metrics_query: str


class AdapterRules(Strict):
    default: bool
    custom: list[Rule]
    external: list[Rule] = []


class AdapterValues(Strict):
    """The values that Widefield sets of the chart prometheus-community/prometheus-adapter."""

    rules: AdapterRules


class DataSource(Strict):
    name: str
    type: Literal["prometheus"]
    uid: str
    access: Literal["proxy", "direct"]
    url: str
    org_id: int = 1
    is_default: bool = False
    editable: bool = False
    json_data: dict[str, object] = {}


class DataSources(Strict):
    api_version: Literal[1]
    datasources: list[DataSource]


class FolderOfDashboards(Strict):
    path: str
    folders_from_files_structure: bool = False


class Provider(Strict):
    name: str
    type: Literal["file"]
    options: FolderOfDashboards
    org_id: int = 1
    folder: str = ""
    folder_uid: str = ""
    disable_deletion: bool = False
    allow_ui_updates: bool = False
    update_interval_seconds: int = 10


class DashboardProviders(Strict):
    api_version: Literal[1]
    providers: list[Provider]
