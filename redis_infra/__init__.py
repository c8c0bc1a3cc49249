"""Redis for Django that keeps working when Redis does not.

This module imports nothing and exports nothing, so that naming the app in ``INSTALLED_APPS`` costs
nothing. Import from the package of the capability, e.g. ``redis_infra.cache``.
"""
