"""`waybill`: runs commands from a terminal, shows jobs as they run, and runs all of Waybill on one machine.

__main__ session exits options     the program, one run of it, how it ends, what its commands share
run jobs catalogue entities        its commands, a file for each group
operations trace up demo
output tree follow records         how results are shown: tables, trees, live, as data
things timeline                    and in the order of time
jaeger                             links to it, and spans from it
parameters datafile completion     what people write: name=value, files, Tab
stack process logfiles             the services as supervised children; tests use these, too
"""
