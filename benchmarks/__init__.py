"""What the operations of redis_infra cost, beside what else a Django site could use.

``python -m benchmarks --help`` says how to run them; nothing here is part of the installed package.
"""
