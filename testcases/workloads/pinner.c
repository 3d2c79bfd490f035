#include "pinner.h"

#include "nvh.h"

bool pinner_missing(const char *what, int err)
{
	nvh_fact_str("missing", what);
	nvh_fact_errno("missing_why", err);
	nvh_skip("%s: %s", what, nvh_errname(err));
	return false;
}
