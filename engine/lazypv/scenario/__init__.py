"""What happens: boot, dirty, reboot, shut down; who is watching. The library's own objects live here."""

from lazypv.scenario.host import VM, Host, Report

__all__ = ["VM", "Host", "Report"]
