"""``ccr demo``: emulated nodes, the router and a load on this machine; policies compared, then left running to try."""

from router.demo.command import demo as demo  # the table of commands names it here
