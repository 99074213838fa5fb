"""Values that the chart's tests render it with."""

import yaml
from manifests import CHART

ALL = {
    "monitoring": {"serviceMonitor": True, "prometheusRule": True, "dashboard": True, "labels": {"release": "stack"}},
    "imagePullSecrets": [{"name": "registry"}],
    "managementToken": {"secretName": "widefield-management", "key": "secret"},
    "tls": {"secretName": "widefield-tls", "clientCertificates": True},
    "modelRepository": {"subPath": "2026-11-24"},
    "initContainers": [
        {
            "name": "fetch",
            "image": "rclone/rclone",
            "args": ["copy", "store:models", "/models"],
            "volumeMounts": [{"name": "models", "mountPath": "/models"}, {"name": "keys", "mountPath": "/config"}],
        }
    ],
    "extraVolumes": [{"name": "keys", "secret": {"secretName": "store"}}, {"name": "traces", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "traces", "mountPath": "/traces"}],
    "serviceAccountName": "models-reader",
    "networkPolicy": {"egress": [{"ports": [{"protocol": "TCP", "port": 443}, {"protocol": "UDP", "port": 53}]}]},
    "nodeSelector": {"zone": "a"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "autoscaling": {"enabled": True},
    "service": {"type": "LoadBalancer", "annotations": {"balancer": "internal"}},
    "podAnnotations": {"note": "x"},
    "deploymentAnnotations": {"reloader.stakater.com/auto": "true"},
    "podLabels": {"team": "vision", "app.kubernetes.io/name": "another"},
    "priorityClassName": "serving",
    "runtimeClassName": "nvidia",
    "sharedMemory": "2Gi",
    "extraArgs": ["--log-verbose=1"],
    "extraEnv": [
        {"name": "WIDEFIELD_HOST", "value": "::"},
        {"name": "WIDEFIELD_SHARED_MEMORY_TOKEN", "valueFrom": {"secretKeyRef": {"name": "shared", "key": "token"}}},
    ],
}
CASES = {
    "default": {},
    "gpu": yaml.safe_load((CHART / "values-gpu.yaml").read_text()),
    "everything": ALL,
    "autoscaled": {"autoscaling": {"enabled": True}},
    "fixed size": {"replicas": 3},
    "no policy": {"networkPolicy": {"enabled": False}},
    "closed": {"networkPolicy": {"clients": [], "monitoring": []}},
    "models in the image": {"modelRepository": {"inImage": True}},
    "OpenShift": {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}},
    "no spare node": {"rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 0}},
    "another autoscaler": {"replicas": None},
}
