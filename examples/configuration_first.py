"""Configuration first: another order for the kernel thread that cleans up behind a guest's back.

Firmware cleans all memory of a configuration when it destroys it. So why walk memory first? Here the kernel thread
destroys the configuration at once, and walks afterwards, to take the marks off pages that nobody owns any more.
docs/policies.md tells the story.
"""

from lazypv.policy import (
    MARKED_TABLE,
    SeriesTeardown,
    destroy_configuration,
    destroy_range,
    drain_set_aside,
    mmput,
)


class ConfigurationFirst(SeriesTeardown):
    async def in_background(self, vm, record):
        host, mm, frames = vm.host, record.mm, vm.host.machine.frames
        answer = await destroy_configuration(vm, record.handle)
        if answer.ok:
            (await mm.write_protected()).gone()  # one configuration less
            frames.put(record.pv.base)
            frames.put(record.pv.variable)
            vm.gmap.free_table(record.table)
            host.destroyed(record.handle)
        else:
            await host.lost(mm, record.pv, answer)
            host.ledger.leak(MARKED_TABLE, record.table.frames)
        await drain_set_aside(host.pages, mm, "destroyed_background")
        if record.has_mm:
            await destroy_range(host.pages, mm, 1, 0, mm.end, host.batch, "destroyed_background", host.throttle)
            await mmput(host, mm, nobody_drains=True)
        await mm.drop()
        host.discarded(record)
