"""JupyterLab of a personal platform. The token is in the file of JUPYTER_TOKEN_FILE. Written by the role jupyter."""

c = get_config()  # noqa: F821
c.ServerApp.ip = "127.0.0.1"
c.ServerApp.port = 8888
c.ServerApp.port_retries = 0
c.ServerApp.open_browser = False
# what is installed stays what the lock file names
c.LabApp.extension_manager = "readonly"
