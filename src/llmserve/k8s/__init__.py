"""`--mode k8s`: the manifest as Kubernetes objects (render), made there (apply), and looked at (status)."""
