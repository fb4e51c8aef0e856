"""What a host can do: drivers, each a set of verbs.

    driver.py     what a driver is and what a verb declares
    arguments.py  a verb's signature as the schema of its arguments
    sim/          stands in for a real host: a small durable model, programmable while it runs

A driver is found through the entry point group `waybill.verbs`: its name is the driver's, its value a module that has
the `Driver` as `driver`. An entry `sim.scrub` adds verbs to the driver `sim`: its module's import registers them. Ours
are one package among others.
"""
